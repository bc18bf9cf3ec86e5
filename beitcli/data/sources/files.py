"""What the sources share: which files are images, their names and labels kept in arrays, and reading one file."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from beitcli.errors import BadImage, DataError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_IMAGE = re.compile(rb"\.(?:" + "|".join(EXTENSIONS).encode() + rb")\Z", re.IGNORECASE)
_INTEGER = re.compile(r"-?[0-9]+")


def is_image_name(name: bytes) -> bool:
    """Whether the name ends as one of the image formats does, in either case."""
    return _IMAGE.search(name) is not None


class PackedNames:
    """Byte strings end to end in one block: 8 bytes more than their characters each, and nothing to copy on fork.

    A million `str` paths would take some 150 MB and be touched (so copied) by every worker's reference counts.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        block, bounds = bytearray(), array("q", [0])
        for name in names:
            block += name
            bounds.append(len(block))
        self._block = bytes(block)
        self._bounds = np.array(bounds, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._block[self._bounds[index] : self._bounds[index + 1]]


class Labeller:
    """Collects one class name, or none, an image, and numbers the classes at the end."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def add(self, name: str | None) -> None:
        """Notes the class of the next image; None where it has none."""
        self._codes.append(-1 if name is None else self._code_of.setdefault(name, len(self._code_of)))

    def finish(self, kept: np.ndarray | None = None) -> tuple[tuple[str, ...] | None, np.ndarray]:
        """The classes and every image's label.

        Args:
            kept: (n,) indices of the images that stay; None for all.

        Returns:
            Class names in label order, or None unless every image has one; (n,) int32 labels, -1 where there is none
            (then labels mean nothing as indices, only whether there is one).
        """
        codes = np.array(self._codes, dtype=np.int32)
        codes = codes if kept is None else codes[kept]
        if not codes.size or codes.min() < 0:
            return None, codes
        names = list(self._code_of)
        classes = class_order(names[code] for code in np.unique(codes))
        label_of = {name: label for label, name in enumerate(classes)}
        return classes, np.array([label_of.get(name, -1) for name in names], dtype=np.int32)[codes]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in label order: by number where all are integers, else by code point."""
    unique = set(names)
    if all(_INTEGER.fullmatch(name) for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def require_whole_labels(name: str, labels: np.ndarray, example: str) -> None:
    """Refuses data of which only a part has labels.

    Args:
        name: The DATA reference.
        labels: (n,) int32, -1 where there is none.
        example: The path of the first image without one.
    """
    missing = int((labels < 0).sum())
    if 0 < missing < len(labels):
        raise DataError(
            f"{missing:,} of the {len(labels):,} images of '{name}' have no class, such as '{example}'.",
            hint="Labels are needed here: give every image a class, or move those images away.",
        )


def read_file(path: str | bytes) -> bytes:
    """The file's bytes. Raises BadImage where there are none to be had."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except IsADirectoryError:
        raise BadImage("a folder, not a file") from None
    except (OSError, ValueError) as error:
        raise BadImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def choose_split(name: str, available: Sequence[str], split: str | None, role: str) -> str:
    """The split to read where data comes in several.

    Args:
        name: The DATA reference.
        available: The splits there are.
        split: `--split`, or None for the role's own.
        role: "train" or "eval".

    Raises:
        DataError: the split is not there.
    """
    wanted = split or {"train": "train", "eval": "val"}[role]
    if wanted in available:
        return wanted
    there = f"it has {', '.join(sorted(available))}" if available else "it has no splits"
    way_out = f"Pass --split {sorted(available)[0]}." if available else "Leave --split out to read all of it."
    raise DataError(f"'{name}' has no split '{wanted}': {there}.", hint=way_out)


def sibling_names(folder: str) -> list[str]:
    """What stands in the folder; nothing where it cannot be listed."""
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []
