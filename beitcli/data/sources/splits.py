"""Which split and which configuration a data file belongs to, by its path, as data sets are laid out on the hub.

DATA that is divided already: folders with `train` and `val` below them, and the drawn data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from beitcli.errors import DataError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_FOR_ROLE = {"train": ("train",), "eval": ("validation", "test")}
_SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}")


def split_of(path: str) -> str | None:
    """`train`, `validation`, `test` or the name before `-00000-of-00001`; None where nothing tells.

    Args:
        path: Below the data set's folder, with `/`.
    """
    *folders, file = path.split("/")
    stem = file.partition(".")[0]
    shard = _SHARD.match(stem)
    if shard:
        return canonical(shard[1])
    for part in (stem, *reversed(folders)):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_OF_WORD:
                return _SPLIT_OF_WORD[word]
    return None


def canonical(split: str) -> str:
    """One name for what is called `val`, `valid`, `dev` and `validation`, and the like."""
    return _SPLIT_OF_WORD.get(split.lower(), split)


def configuration_of(path: str) -> str | None:
    """The first folder that is neither `data` nor a split; None where there is none."""
    for folder in path.split("/")[:-1]:
        if folder.lower() != "data" and canonical(folder) not in _WORDS:
            return folder
    return None


def files_of_split(name: str, paths: Sequence[str], split: str | None, role: str) -> list[str]:
    """The files of `--split`, or of the role's own split; all where their paths tell no splits apart.

    Args:
        name: The DATA reference.
        paths: Below the data set's folder.
        role: "train" or "eval".

    Raises:
        DataError: the split is not there.
    """
    splits = {path: split_of(path) for path in paths}
    available = sorted({each for each in splits.values() if each is not None})
    if split is None and (len(available) < 2 or None in splits.values()):
        return list(paths)
    wanted = _FOR_ROLE[role] if split is None else (canonical(split),)
    for each in wanted:
        if each in available:
            return [path for path in paths if splits[path] == each]
    there = f"it has {', '.join(available)}" if available else "it has no splits"
    way_out = f"Pass --split {available[0]}." if available else "Leave --split out to read all of it."
    raise DataError(f"'{name}' has no split '{split or wanted[0]}': {there}.", hint=way_out)


def have_train_and_val(references: Iterable[str]) -> bool:
    """Whether each DATA has a split to learn from and one to measure on."""
    return all(name == "sample" or all((Path(name) / s).is_dir() for s in ("train", "val")) for name in references)
