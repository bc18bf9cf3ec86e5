"""Splits: what train, validation and test are called, which split a file is of, and which one is read.

| split | called, in any case | read by default |
|---|---|---|
| train | train, training | to train |
| validation | val, validation, valid, dev | to measure |
| test | test, testing, eval, evaluation | to measure where there is no validation split; never to train |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from beitcli.data.sources.format import Request
from beitcli.errors import DataError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
WORDS = tuple(_SPLIT_OF_WORD)
_OF_ROLE = {"train": ("train",), "eval": ("validation", "test")}
_SHARD = re.compile(r"(.+?)-[0-9]{5}-of-[0-9]{5}")


def canonical(split: str) -> str:
    """One name for what is called `val`, `valid`, `dev` and `validation`, and the like; others stay as they are."""
    return _SPLIT_OF_WORD.get(split.lower(), split)


def is_split(name: str) -> bool:
    """Whether a folder of that name may be a split."""
    return name.lower() in _SPLIT_OF_WORD


def split_of(path: str) -> str | None:
    """`train`, `validation`, `test` or the name before `-00000-of-00001`; None where nothing tells.

    Args:
        path: Of a file, with `/`.
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


def configuration_of(path: str) -> str | None:
    """The first folder that is neither `data` nor a split; None where there is none."""
    for folder in path.split("/")[:-1]:
        if folder.lower() != "data" and not is_split(folder):
            return folder
    return None


def are_splits(names: Iterable[str | None]) -> bool:
    """Whether parts of a data set are its splits, rather than classes or just parts.

    They are where all of them are called so, two at least, or where there are both a train and a validation split.

    Args:
        names: Of the parts; None where nothing tells.
    """
    splits = {None if name is None else canonical(name) for name in names}
    return has_train_and_val(splits) or (None not in splits and len(splits) > 1)


def has_train_and_val(splits: Iterable[str | None]) -> bool:
    """Whether there is one to learn from and one to measure on."""
    return {"train", "validation"} <= set(splits)


def trains_apart_from_val(split: str | None, splits: Iterable[str | None]) -> bool:
    """Whether training on `--split` (None: on its own) leaves a validation split of the data aside.

    Args:
        splits: `Source.splits`.
    """
    return canonical(split or "train") == "train" and has_train_and_val(splits)


def choose_split(name: str, available: Iterable[str], request: Request) -> str:
    """The one to read of the splits that there are, by their names there; tells which ones are left aside.

    Args:
        name: The DATA reference.

    Raises:
        DataError: the split is not there.
    """
    there = sorted(set(available), key=_order)
    wanted = _OF_ROLE[request.role] if request.split is None else (canonical(request.split),)
    found = [each for split in wanted for each in there if canonical(each) == split]
    if not found:
        missing = request.split or _WORDS[wanted[0]][0]
        has = f"it has {', '.join(sorted(there))}" if there else "it has no splits"
        way_out = f"Pass --split {there[0]}." if there else "Leave --split out to read all of it."
        raise DataError(f"'{name}' has no split '{missing}': {has}.", hint=way_out)
    chosen = request.split if request.split in found else found[0]
    say_left_aside(name, chosen, there, request)
    return chosen


def say_left_aside(name: str, chosen: str, there: Iterable[str], request: Request) -> None:
    """Tells what a choice of split does not read."""
    aside = ", ".join(sorted(set(there) - {chosen}))
    if aside:
        request.say(f"'{name}': split {chosen} is read, {aside} left aside; --split chooses.")


def _order(name: str) -> tuple[int, str]:
    """Of the names of splits: train first, and `val` before `valid`."""
    return (WORDS.index(name.lower()) if is_split(name) else len(WORDS)), name


def files_of_split(
    name: str, paths: Sequence[str], request: Request, *, by_default: bool = True
) -> tuple[list[str], frozenset[str]]:
    """The files of `--split`, or of the role's own split, and which splits there are.

    Where nothing is to be chosen, that is all files, and no splits.

    Args:
        name: The DATA reference.
        paths: Below the data set's folder; or of files that were named one by one.
        by_default: Whether the role chooses where no `--split` is given; not of files that were named one by one.

    Raises:
        DataError: the split is not there.
    """
    splits = [split_of(path) for path in (paths if by_default else _apart(paths))]
    known = frozenset(each for each in splits if each is not None)
    if request.split is None and not (by_default and are_splits(splits)):
        if are_splits(splits):
            request.say(f"'{name}' names files of several splits, and all are read; --split chooses.")
        return list(paths), frozenset()
    chosen = choose_split(name, known, request)
    return [path for path, split in zip(paths, splits, strict=True) if split == chosen], known


def _apart(paths: Sequence[str]) -> list[str]:
    """Below the folder that all are in; it counts if it is called as a split itself, but those above it do not."""
    places = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(place) for place in places])
    root = os.path.dirname(common) if is_split(os.path.basename(common)) else common
    return [os.path.relpath(place, root) for place in places]
