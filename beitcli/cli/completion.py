"""What the shell completes as the value of an option or argument (stdlib only); where it offers nothing, file names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from beitcli.config.architecture import SIZES
from beitcli.config.data_formats import DATA_FORMATS
from beitcli.config.fields import Setting
from beitcli.config.recipe_files import RECIPES, recipe_names
from beitcli.tokenizers.pretrained import words as tokenizer_words

_RUNS = "runs"
_DATA, _MODELS = {"DATA", "INPUT", "IMAGE"}, {"MODEL", "REF", "TOKENIZER", "RUN"}


def completer(command: str, setting: Setting) -> Callable[[str], list[str]] | None:
    """Returns the function from the word so far to its completions; None where only files fit.

    typer tells what an argument of the function means by its name, so it is `incomplete`.
    """
    how = setting.option
    if setting.choices:
        return (
            (lambda incomplete: _listed(incomplete, setting.choices))
            if setting.many
            else _among(lambda: setting.choices)
        )
    if setting.name == "recipe":
        return _among(lambda: recipe_names(command))
    if setting.name == "pretrain_recipe":
        return _among(lambda: recipe_names("pretrain"))
    if setting.name == "tokenizer_recipe":
        return _among(lambda: recipe_names("train-tokenizer"))
    if (command, setting.name) == ("recipes", "name"):
        return _among(lambda: [*_every_recipe(), *(folder.name for folder in RECIPES.iterdir())])
    suffixes = how.suffixes or [each for each in how.offered if each.startswith(".")]
    if suffixes:
        return lambda incomplete: _with_suffix(incomplete, suffixes)
    if how.offered:
        return _among(lambda: how.offered)
    if how.metavar in _DATA:
        return _or_files(_data_words)
    if how.metavar == "TOKENIZER":
        return _among(lambda: (*tokenizer_words(), *runs()))
    if how.metavar in _MODELS:
        return _among(runs)
    if setting.name == "model":
        return _among(lambda: SIZES)
    return None


def runs() -> list[str]:
    """Returns the runs in runs/, the newest first."""
    found = []
    try:
        for entry in os.scandir(_RUNS):
            if os.path.isfile(os.path.join(entry.path, "config.toml")):
                found.append((-entry.stat().st_mtime, entry.path))
    except OSError:
        return []
    return [path for _, path in sorted(found)]


def _every_recipe() -> list[str]:
    """Returns the recipes of all commands, each name once."""
    return sorted({name for folder in RECIPES.iterdir() for name in recipe_names(folder.name)})


def _data_words() -> list[str]:
    return [word for each in DATA_FORMATS.written for word in each.get("words") or () if word != "-"]


def _among(offered: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [each for each in offered() if each.startswith(incomplete)]


def _or_files(offered: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """As `_among`, with the files that fit beside the words that do."""
    words = _among(offered)

    def complete(incomplete: str) -> list[str]:
        fitting = words(incomplete)
        return list(dict.fromkeys([*fitting, *_files(incomplete)])) if fitting else []

    return complete


def _listed(word: str, choices: Iterable[str]) -> list[str]:
    """Completes the last of names that commas separate; those before it are not offered again."""
    before, comma, last = word.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{each}" for each in choices if each.startswith(last) and each not in taken]


def _with_suffix(word: str, suffixes: Iterable[str]) -> list[str]:
    """Offers the suffixes that fit a name; nothing before the name has begun, or while it is a folder."""
    folder, name = os.path.split(word)
    stem, dot, begun = name.rpartition(".")
    if not name or os.path.isdir(word):
        return []
    stem = stem if dot else name
    offered = [suffix for suffix in suffixes if suffix.startswith(dot + begun if dot else "")]
    return [os.path.join(folder, stem + suffix) for suffix in offered] + _files(word)


def _files(word: str) -> list[str]:
    """Returns the files and folders whose names begin so: a shell that is offered words looks for none itself."""
    folder, name = os.path.split(word)
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    return [
        os.path.join(folder, each.name) + ("/" if each.is_dir() else "")
        for each in entries
        if each.name.startswith(name) and (name or not each.name.startswith("."))
    ]
