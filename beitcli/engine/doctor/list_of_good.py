"""Writes the images that are good as a list, which every command takes as DATA."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from beitcli.data.sources.base import Source
from beitcli.data.sources.pages import PAGE
from beitcli.engine.doctor.report import Diagnosis
from beitcli.errors import DataError, UsageError

_REMOTE = "hf://"
_SIGNS = b"\t\n\r"
_NO_NAME = "a list holds no TAB or line break in a name, and no space around it"
_NO_CLASS = "a list holds no TAB or line break in a class, and no space around it"
_NO_FILE = "a list names files, and there is none"


@dataclass(frozen=True)
class GoodList:
    """A list before it is written.

    Attributes:
        content: The file: a path a line, with TAB and class where there are classes.
        images: Number of lines.
        dropped: Images that are left out, by the word of `--drop`; an image counts for the first.
        unnamed: Images that are left out because no line can hold their names or classes, or no file is there, by why.
    """

    content: bytes
    images: int
    dropped: dict[str, int]
    unnamed: dict[str, int]


def require_files(source: Source) -> None:
    """Raises UsageError, before any work, if neither the first nor the last image is a file or lies in one."""
    lines = [_line(source, index, {}, with_labels=False) for index in (0, len(source) - 1)]
    if lines == [_NO_FILE, _NO_FILE]:
        raise UsageError(f"The images of '{source.name}' have no files, and a list names files.", "Leave -o out.")


def list_of_good(source: Source, diagnosis: Diagnosis, drop: tuple[str, ...], *, with_labels: bool) -> GoodList:
    """Lists the good images of the first split.

    Args:
        source: That split.
        drop: What to leave out.

    Raises:
        UsageError: The images are not on this machine, or have no files.
        DataError: None is left.
    """
    copies = diagnosis.copies_to_drop
    left_out: dict[int, str] = {}
    for word in drop:
        indices = copies[word] if word in copies else diagnosis.image_of[word].tolist()
        for index in indices:
            left_out.setdefault(index, word)
    file, images, unnamed, shards = BytesIO(), 0, Counter[str](), dict[str, str]()
    for index in range(len(source)):
        if index in left_out:
            continue
        line = _line(source, index, shards, with_labels=with_labels)
        if isinstance(line, bytes):
            file.write(line)
            images += 1
        else:
            unnamed[line] += 1
    if not images:
        raise DataError(f"No image of '{source.name}' is left for a list.", "Leave --drop out, or give other data.")
    dropped = {word: sum(left_out.get(index) == word for index in range(len(source))) for word in drop}
    return GoodList(
        file.getvalue(), images, {word: number for word, number in dropped.items() if number}, dict(unnamed)
    )


def _line(source: Source, index: int, shards: dict[str, str], *, with_labels: bool) -> bytes | str:
    """Returns a line of the list; as text why there is none.

    Args:
        shards: The file that each folder of names lies in, as found so far.
    """
    path = source.path(index)
    if PAGE in os.path.basename(path):
        raise UsageError("A list names files, and with --pages all their pages are looked at.", "Leave --pages out.")
    if path.startswith(_REMOTE):
        raise UsageError(
            f"'{source.name}' is not on this machine, and a list names files of this machine.",
            "Download it, and give the folder with its parquet files.",
        )
    named = _absolute(path, shards)
    if named is None:
        return _NO_FILE
    name = os.fsencode(named)
    if any(sign in name for sign in _SIGNS) or name.strip() != name:
        return _NO_NAME
    label = source.label(index) if with_labels else None
    if label is None or source.classes is None:
        return name + b"\n"
    of = os.fsencode(source.classes[label])
    if any(sign in of for sign in _SIGNS) or of.strip() != of:
        return _NO_CLASS
    return name + b"\t" + of + b"\n"


def _absolute(path: str, shards: dict[str, str]) -> str | None:
    """Returns the name from any folder; of a member, whose own name may begin with `/`, that of its shard is changed.

    None: no file and no shard is there.
    """
    if os.path.lexists(path):
        return _from_root(path)
    folder = os.path.dirname(path)
    if folder not in shards:
        ends = (place for place, sign in enumerate(path) if sign == "/" and place)
        shards[folder] = next((path[:end] for end in ends if os.path.isfile(path[:end])), "")
    shard = shards[folder]
    return _from_root(shard) + path[len(shard) :] if shard else None


def _from_root(path: str) -> str:
    if ".." not in path.split("/"):
        return os.path.abspath(path)
    folder, name = os.path.split(os.path.join(os.getcwd(), path))
    return os.path.join(_without_dots(folder), name)


@lru_cache(maxsize=1024)
def _without_dots(folder: str) -> str:
    """Returns a folder without `..`; behind a link to another one, which .. leaves, that is not what it looks like."""
    plain = os.path.abspath(folder)
    real = os.path.realpath(folder)
    return plain if os.path.realpath(plain) == real else real
