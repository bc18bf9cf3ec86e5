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
from collections.abc import Callable, Collection, Iterable, Sequence

from beitcli.config.nearest import suggestion
from beitcli.data.sources.format import Request
from beitcli.errors import DataError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
WORDS = tuple(_SPLIT_OF_WORD)
_ANY_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(WORDS)})(?![a-z])")
_OF_ROLE = {"train": ("train",), "eval": ("validation", "test")}
_SHARD = re.compile(r"(.+?)-[0-9]{5,}-of-[0-9]{5,}")


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
    word = _ANY_WORD.search("/".join((stem, *reversed(folders))).lower())
    return _SPLIT_OF_WORD[word[0]] if word else None


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


def are_split_folders(names: Sequence[str], holds_folders: Callable[[str], bool]) -> bool:
    """Whether top folders with names of splits, and without others beside them, are splits, not classes.

    The names `train` and `val` suffice. Others, such as `dev` beside `eval`, could be classes unless they hold folders.

    Args:
        names: Names of splits.
        holds_folders: Whether a top folder holds folders.
    """
    are = [name.lower() in ("train", "val") or holds_folders(name) for name in names]
    splits = set(map(canonical, names))
    return "train" in splits or any(are) if len(splits) > 1 else bool(are) and all(are)


def are_parts(names: Collection[str], split: str | None) -> bool:
    """Whether subfolders in the layout of a dataset are its parts; a single one of any other name is its wrapper.

    Args:
        split: `--split`, which may have any name.
    """
    return len(names) > 1 or any(is_split(name) or name == split for name in names)


def has_train_and_val(splits: Iterable[str | None]) -> bool:
    """Whether there are both a train and a validation split."""
    return {"train", "validation"} <= set(splits)


def trains_apart_from_val(split: str | None, splits: Iterable[str | None]) -> bool:
    """Whether training on `--split` (None: the default) leaves a validation split for evaluation.

    Args:
        splits: `Source.splits`.
    """
    return canonical(split or "train") == "train" and has_train_and_val(splits)


def choose_split(name: str, available: Iterable[str], request: Request, *, outside: str = "") -> list[str]:
    """Selects the split to read among the available names; reports what is not read.

    Args:
        name: The DATA reference.
        available: Names of splits; of two names for one split, such as `val` and `valid`, both are selected.
        outside: What is in no split, for the report.

    Returns:
        All available names of one split, the usual name first.

    Raises:
        DataError: The split is missing.
    """
    there = sorted(set(available), key=_order)
    requested = _OF_ROLE[request.role] if request.split is None else (canonical(request.split),)
    found = [chosen for split in requested if (chosen := [each for each in there if canonical(each) == split])]
    if not found:
        missing = _WORDS[requested[0]][0] if request.split is None else request.split
        has = f"it has {', '.join(sorted(there))}" if there else "it has no splits"
        way_out = suggestion(missing, there, prefix="--split ") if request.split else ""
        way_out = way_out or (f"Pass --split {there[0]}." if there else "Leave --split out to read all of it.")
        raise DataError(f"'{name}' has no split '{missing}': {has}.", hint=way_out)
    report_unused_splits(name, found[0], there, request, outside=outside)
    return found[0]


def report_unused_splits(
    name: str, chosen: Sequence[str], there: Iterable[str], request: Request, *, outside: str = ""
) -> None:
    """Reports the splits that are not read, and what is in none."""
    unused = " and ".join(sorted(set(there) - set(chosen)))
    if (unused or outside) and request.tells_splits:
        reading = f"reading split {' and '.join(chosen)}" + (f", not {unused}" if unused else "")
        beside = f" In no split and not read: {outside}." if outside else ""
        request.say(f"'{name}': {reading}.{beside} --split reads another.")


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
    if request.split is None and not by_default:
        if request.on_progress is not None and are_splits(map(split_of, _apart(paths))):
            request.say(f"'{name}' names files of several splits, and all are read; --split chooses.")
        return list(paths), frozenset()
    splits = [split_of(path) for path in (paths if by_default else _apart(paths))]
    if request.split is None and not are_splits(splits):
        return list(paths), frozenset()
    available = frozenset(each for each in splits if each is not None)
    unknown = splits.count(None)
    outside = f"{unknown:,} file{'s'[: unknown > 1]}" if unknown else ""
    (chosen,) = choose_split(name, available, request, outside=outside)
    return [path for path, split in zip(paths, splits, strict=True) if split == chosen], available


def _apart(paths: Sequence[str]) -> list[str]:
    """Makes paths relative to their common folder, or to its parent if that folder has the name of a split."""
    pairs = [os.path.split(path) for path in paths]
    places = {folder: os.path.abspath(folder) for folder in {folder for folder, _ in pairs}}
    common = os.path.commonpath(places.values())
    root = os.path.dirname(common) if is_split(os.path.basename(common)) else common
    below = {folder: os.path.relpath(place, root) for folder, place in places.items()}
    return [f"{below[folder]}/{file}" for folder, file in pairs]
