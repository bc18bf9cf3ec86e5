"""Writes the images that are good as a list, which every command takes as DATA."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.report import Diagnosis
from beitcli.errors import DataError, UsageError

_REMOTE = "hf://"


@dataclass(frozen=True)
class GoodList:
    """A list before it is written.

    Attributes:
        content: The file: a path a line, with TAB and class where there are classes.
        images: Number of lines.
        dropped: Images that are left out, by the word of `--drop`; an image counts for the first.
        unnamed: Images that are left out because no line can hold their names.
    """

    content: bytes
    images: int
    dropped: dict[str, int]
    unnamed: int


def list_of_good(source: Source, diagnosis: Diagnosis, drop: tuple[str, ...], *, with_labels: bool) -> GoodList:
    """Lists the good images of the first split.

    Args:
        source: That split.
        drop: What to leave out.

    Raises:
        UsageError: The images are not on this machine.
        DataError: None is left.
    """
    copies = diagnosis.copies_to_drop
    left_out: dict[int, str] = {}
    for word in drop:
        indices = copies[word] if word in copies else diagnosis.image_of[word].tolist()
        for index in indices:
            left_out.setdefault(index, word)
    file, images, unnamed = BytesIO(), 0, 0
    for index in range(len(source)):
        if index in left_out:
            continue
        line = _line(source, index, with_labels=with_labels)
        unnamed += line is None
        if line is not None:
            file.write(line)
            images += 1
    if not images:
        raise DataError(f"No image of '{source.name}' is left for a list.", "Leave --drop out, or give other data.")
    dropped = {word: sum(left_out.get(index) == word for index in range(len(source))) for word in drop}
    return GoodList(file.getvalue(), images, {word: number for word, number in dropped.items() if number}, unnamed)


def _line(source: Source, index: int, *, with_labels: bool) -> bytes | None:
    """Returns a line of the list; None for a name that no line can hold."""
    path = source.path(index)
    if "#page=" in os.path.basename(path):
        raise UsageError("A list names files, and with --pages all their pages are looked at.", "Leave --pages out.")
    if path.startswith(_REMOTE):
        raise UsageError(
            f"'{source.name}' is not on this machine, and a list names files of this machine.",
            "Download it, and give the folder with its parquet files.",
        )
    name = os.fsencode(os.path.abspath(path))
    if any(sign in name for sign in b"\t\n\r") or name.strip() != name:
        return None
    label = source.label(index) if with_labels else None
    if label is None or source.classes is None:
        return name + b"\n"
    return name + b"\t" + os.fsencode(source.classes[label]) + b"\n"
