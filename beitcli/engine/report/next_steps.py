"""Commands to go on with after a run, as words: for its model card and its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beitcli.config.resolve import recipe_names
from beitcli.config.tasks import DEFAULT_TASK, TASKS


def next_commands(command: str, settings: dict[str, Any], run: str, *, decodes: bool = True) -> list[tuple[str, ...]]:
    """Returns the commands that fit a run.

    Args:
        command: The one that made it.
        settings: Of its config.toml.
        decodes: Of a tokenizer: whether it has a decoder.
    """
    data = _texts(settings.get("data"))
    if command == "train-tokenizer":
        pictures = ("--reconstruct", "out/") if decodes else ()
        return [
            ("beit", "tokenize", "photo.jpg", "--tokenizer", run, *pictures),
            ("beit", "pretrain", *data, "--tokenizer", run),
        ]
    if command == "pretrain":
        recipe = str(settings.get("recipe", ""))
        same = ("--recipe", recipe) if recipe in recipe_names("finetune") else ()
        return [
            ("beit", "mask-preview", "photo.jpg", "--model", run, "-o", "masked.png"),
            ("beit", "attn-map", "photo.jpg", "--model", run, "-o", "attention.png"),
            ("beit", "finetune", "LABELLED", "--init", run, *same),
        ]
    if command == "finetune":
        val = _texts(settings.get("val")) or ("HELD-OUT",)
        task = TASKS.entries().get(str(settings.get("task", DEFAULT_TASK)))
        measure, show = (task.eval_options, task.predict_options) if task else ((), ())
        return [("beit", "eval", run, *val, *measure), ("beit", "predict", run, "photo.jpg", *show)]
    return []


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, Sequence) else ()
