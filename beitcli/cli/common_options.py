"""Which options `--help` shows, and which come first; `--help-all` shows all.

The commands with most options name those that `--help` shows, among them all that their messages advise; the others
hide those of several machines alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from beitcli.config.fields import Setting

_TRAINING = (
    *("split", "limit", "recipe", "config", "out", "resume", "dry_run", "log_to"),
    *("epochs", "steps", "batch_size", "lr"),
    *("micro_batch", "warmup_steps", "measure_share", "max_bad", "pages", "intensity_range"),
)
_MACHINE = ("device", "precision", "gpus", "workers", "seed")
_OF_COMMAND: dict[str, tuple[str, ...]] = {
    "pretrain": (
        *("model", "tokenizer", "masking", "ratio", "num_masked", "image_size", "patch_size", "token_cache"),
        *("tokenizer_steps", "min_block"),
    ),
    "finetune": (
        *("init", "task", "head", "val", "holdout", "size", "patch_size", "layer_decay", "drop_path", "classes"),
        *("problem", "ignore_index", "reduce_zero_label"),
    ),
    "train-tokenizer": ("kind", "vocab_size", "size", "teacher"),
}
_COMMON: dict[str, tuple[str, ...]] = {
    **{name: (*_TRAINING, *_MACHINE, *own) for name, own in _OF_COMMAND.items()},
    "eval": (
        *("split", "protocol", "train", "layer", "k", "size", "batch_size", "limit", *_MACHINE),
        *("pages", "intensity_range", "max_bad", "tokenizer", "pool", "feature_cache"),
        *("ignore_index", "reduce_zero_label"),
    ),
}
# Of a training, in this order, and their panels before the others.
_FIRST = ("recipe", "out", "resume", "dry_run", "epochs", "steps", "batch_size", "lr", "init", "val", "limit", "split")
_FURTHER = {"nodes", "rdzv_endpoint", "rdzv_timeout", "process_timeout", "max_restarts"}


def is_common(command: str, setting: Setting) -> bool:
    """Whether the command's `--help` shows the setting."""
    if setting.option.argument or setting.option.required:
        return True
    chosen: Iterable[str] | None = _COMMON.get(command)
    return setting.name in chosen if chosen is not None else setting.name not in _FURTHER


def place_in_help(command: str, setting: Setting) -> int:
    """Returns where a setting stands among the others; those of one place keep their order."""
    is_first = command in _OF_COMMAND and setting.name in _FIRST
    return _FIRST.index(setting.name) if is_first else len(_FIRST)
