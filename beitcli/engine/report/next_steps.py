"""Commands to go on with after a run, as words: for its model card and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.recipe_files import recipe_names
from beitcli.config.resuming import resuming_note, resuming_words
from beitcli.config.tasks import DEFAULT_TASK, TASKS
from beitcli.config.train_tokenizer import TrainTokenizerConfig

_SOME = 4  # images that a command shows first
_TOKENIZERS = "runs/tokenizer"
_TRAININGS = {each.command: each for each in (TrainTokenizerConfig, PretrainConfig, FinetuneConfig)}


def next_commands(
    command: str,
    settings: dict[str, Any],
    run: str,
    *,
    decodes: bool = True,
    can_resume: bool = False,
    has_model: bool = True,
) -> list[tuple[str, ...]]:
    """Returns the commands that fit a run.

    Args:
        command: The one that made it.
        settings: Of its config.toml, which may be a stranger's: of them no folder to write to is taken.
        decodes: Of a tokenizer: whether it has a decoder.
        can_resume: Whether it was stopped, so that the first command is the one that goes on with it; `note_of` is
            to stand beside it. Of a run on the images of stdin there is none.
        has_model: Whether it has a checkpoint, which the other commands read.
    """
    if command not in _TRAININGS:
        return []
    is_stdin = "-" in _texts(settings.get("data"))
    resume = [tuple(resuming_words(_TRAININGS[command], run, {}))] if can_resume and not is_stdin else []
    return [*resume, *(_of_model(command, settings, run, decodes=decodes) if has_model else [])]


def tokenizer_commands(settings: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the commands that train another tokenizer for a pretraining, say whether it suits, and pretrain with it.

    It goes to a folder that is not there yet: the poor tokenizer may be in the first that one thinks of.
    """
    data, recipe = _texts(settings.get("data")), str(settings.get("recipe", ""))
    named, run = ("DATA",) if not data or "-" in data else data, _free_run(str(settings.get("tokenizer", "")))
    return [
        ("beit", "train-tokenizer", *named, "--recipe", "small", "--out", run),
        ("beit", "tokenize", *named, "--tokenizer", run, "--stats"),
        ("beit", "pretrain", *named, *_same_recipe(recipe, "pretrain"), "--tokenizer", run),
    ]


def _free_run(taken: str) -> str:
    """Returns the first of runs/tokenizer, runs/tokenizer-2 and so on that is neither there nor `taken`."""
    names = (f"{_TOKENIZERS}-{number}" if number > 1 else _TOKENIZERS for number in count(1))
    return next(name for name in names if not os.path.lexists(name) and Path(name) != Path(taken))


def note_of(words: Sequence[str]) -> str:
    """Returns what to say beside one of the commands: of `--resume` the options that it lacks, else nothing."""
    return resuming_note(_TRAININGS[words[1]]) if "--resume" in words else ""


def _of_model(command: str, settings: dict[str, Any], run: str, *, decodes: bool) -> list[tuple[str, ...]]:
    """Returns the commands that take the model of a run."""
    data, recipe = _texts(settings.get("data")), str(settings.get("recipe", ""))
    is_drawn, is_stdin = data == ("sample",), "-" in data

    def some(most: int) -> tuple[str, ...]:
        return (*data, "--limit", str(most)) if data and not is_stdin else ("photo.jpg",)

    if command == "train-tokenizer":
        pictures = ("--reconstruct", "out/") if decodes else ()
        same, learned = _same_recipe(recipe, "pretrain"), ("DATA",) if is_stdin else data
        return [
            ("beit", "tokenize", *some(_SOME), "--tokenizer", run, *pictures),
            ("beit", "pretrain", *learned, *same, "--tokenizer", run),
        ]
    if command == "pretrain":
        labelled = "sample" if is_drawn else "LABELLED"
        return [
            ("beit", "mask-preview", *some(_SOME), "--model", run, "-o", "masked.png"),
            ("beit", "attn-map", *some(1), "--model", run, "-o", "attention.png"),
            ("beit", "finetune", labelled, "--init", run, *_same_recipe(recipe, "finetune")),
        ]
    val = _texts(settings.get("val")) or (("sample",) if is_drawn else ("HELD-OUT",))
    task = TASKS.entries().get(str(settings.get("task", DEFAULT_TASK)))
    measure, show = (task.eval_options, task.predict_options) if task else ((), ())
    seen = some(_SOME) if is_drawn else ("photo.jpg",)  # DATA may hold masks and boxes beside the images
    return [("beit", "eval", run, *val, *measure), ("beit", "predict", run, *seen, *show)]


def _same_recipe(recipe: str, command: str) -> tuple[str, ...]:
    """Returns the option for the recipe of the same name, if the command has one: its default may take days."""
    return ("--recipe", recipe) if recipe in recipe_names(command) else ()


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, Sequence) else ()
