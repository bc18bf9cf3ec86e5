"""Dataset splits: recognizes them by name and selects the one to read.

| split | names, in any case | default for |
|---|---|---|
| train | train, training | training |
| validation | val, validation, valid, dev | evaluation |
| test | test, testing, eval, evaluation | evaluation if there is no validation split; never training |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from beitcli.config.fields import suggestion
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
    """Returns the canonical name of a split, such as `validation` for `val`; other names are returned unchanged."""
    return _SPLIT_OF_WORD.get(split.lower(), split)


def is_split(name: str) -> bool:
    """Whether a name is one of those for splits."""
    return name.lower() in _SPLIT_OF_WORD


def split_of(path: str) -> str | None:
    """Returns the canonical split of a file, by its path or by the name before `-00000-of-00001`; None if unknown.

    Args:
        path: Path of a file, with `/`.
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
    """Returns the configuration of a file: the first folder that is neither `data` nor a split; None without one."""
    for folder in path.split("/")[:-1]:
        if folder.lower() != "data" and not is_split(folder):
            return folder
    return None


def are_splits(names: Iterable[str | None]) -> bool:
    """Whether the parts of a dataset are its splits, not classes or shards.

    They are if all have names of splits, of at least two splits, or if there are both a train and a validation split.

    Args:
        names: Names of the parts; None if a part has no known split.
    """
    splits = {None if name is None else canonical(name) for name in names}
    return has_train_and_val(splits) or (None not in splits and len(splits) > 1)


def has_train_and_val(splits: Iterable[str | None]) -> bool:
    """Whether there are both a train and a validation split."""
    return {"train", "validation"} <= set(splits)


def trains_apart_from_val(split: str | None, splits: Iterable[str | None]) -> bool:
    """Whether training on `--split` (None: the default) leaves a validation split for evaluation.

    Args:
        splits: `Source.splits`.
    """
    return canonical(split or "train") == "train" and has_train_and_val(splits)


def choose_split(name: str, available: Iterable[str], request: Request) -> str:
    """Selects the split to read among the available names; reports the unused ones.

    Args:
        name: The DATA reference.

    Raises:
        DataError: The split is missing.
    """
    there = sorted(set(available), key=_order)
    wanted = _OF_ROLE[request.role] if request.split is None else (canonical(request.split),)
    found = [each for split in wanted for each in there if canonical(each) == split]
    if not found:
        missing = request.split or _WORDS[wanted[0]][0]
        has = f"it has {', '.join(sorted(there))}" if there else "it has no splits"
        way_out = suggestion(missing, there, prefix="--split ") if request.split else ""
        way_out = way_out or (f"Pass --split {there[0]}." if there else "Leave --split out to read all of it.")
        raise DataError(f"'{name}' has no split '{missing}': {has}.", hint=way_out)
    chosen = request.split if request.split in found else found[0]
    report_unused_splits(name, chosen, there, request)
    return chosen


def report_unused_splits(name: str, chosen: str, there: Iterable[str], request: Request) -> None:
    """Reports the splits that are not read."""
    unused = " and ".join(sorted(set(there) - {chosen}))
    if unused:
        request.say(f"'{name}': reading split {chosen}, not {unused}. --split reads another.")


def _order(name: str) -> tuple[int, str]:
    """Sort key for split names: train first, and `val` before `valid`."""
    return (WORDS.index(name.lower()) if is_split(name) else len(WORDS)), name


def files_of_split(
    name: str, paths: Sequence[str], request: Request, *, by_default: bool = True
) -> tuple[list[str], frozenset[str]]:
    """Selects the files of `--split`, or of the default split; also returns all splits.

    If there is nothing to select, returns all files and no splits.

    Args:
        name: The DATA reference.
        paths: Paths relative to the dataset's folder, or of files that the user listed one by one.
        by_default: Whether to use the default split without `--split`; False for files that the user listed.

    Raises:
        DataError: The split is missing.
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
    """Makes paths relative to their common folder, or to its parent if that folder has the name of a split."""
    places = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(place) for place in places])
    root = os.path.dirname(common) if is_split(os.path.basename(common)) else common
    return [os.path.relpath(place, root) for place in places]
