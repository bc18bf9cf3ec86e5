"""Which options `--help` shows; `--help-all` shows all.

The commands with most options name those that `--help` shows; the others hide those of several machines alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from beitcli.config.fields import Setting

_TRAINING = (
    *("split", "limit", "recipe", "config", "out", "resume", "dry_run", "log_to"),
    *("epochs", "steps", "batch_size", "lr"),
)
_MACHINE = ("device", "precision", "gpus", "workers", "seed")
_OF_COMMAND: dict[str, tuple[str, ...]] = {
    "pretrain": ("model", "tokenizer", "masking", "ratio", "num_masked", "image_size", "token_cache"),
    "finetune": ("init", "task", "head", "val", "size", "layer_decay", "drop_path", "classes"),
    "train-tokenizer": ("kind", "vocab_size", "size", "teacher"),
}
_COMMON: dict[str, tuple[str, ...]] = {
    **{name: (*_TRAINING, *_MACHINE, *own) for name, own in _OF_COMMAND.items()},
    "eval": ("split", "protocol", "train", "layer", "k", "size", "batch_size", "limit", *_MACHINE),
}
_FURTHER = {"nodes", "rdzv_endpoint", "rdzv_timeout", "process_timeout", "max_restarts"}


def is_common(command: str, setting: Setting) -> bool:
    """Whether the command's `--help` shows the setting."""
    if setting.option.argument or setting.option.required:
        return True
    chosen: Iterable[str] | None = _COMMON.get(command)
    return setting.name in chosen if chosen is not None else setting.name not in _FURTHER
