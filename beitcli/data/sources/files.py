"""What the sources share: which files are images, their names and labels kept in arrays, and reading one file."""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from beitcli.errors import BadImage, DataError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
_IMAGE = re.compile(rb"\.(?:" + "|".join(EXTENSIONS).encode() + rb")\Z", re.IGNORECASE)
MAX_IMAGE_BYTES = 2_147_483_648  # the largest image that is decoded takes 1.4 GB as 16-bit RGBA
_INTEGER = re.compile(r"-?[0-9]+")


def is_image_name(name: bytes) -> bool:
    """Whether the name ends as one of the image formats does, in either case."""
    return _IMAGE.search(name) is not None


class PackedNames:
    """Byte strings end to end in one block: 8 bytes more than their characters each, and nothing to copy on fork.

    A million `str` paths would take some 150 MB and be touched (so copied) by every worker's reference counts.

    Attributes:
        block: (bytes,) uint8.
        bounds: (n + 1,) int64, where each begins and the last ends.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        block, bounds = bytearray(), array("q", [0])
        for name in names:
            block += name
            bounds.append(len(block))
        self.block, self.bounds = np.frombuffer(block, dtype=np.uint8), np.frombuffer(bounds, dtype=np.int64)

    @classmethod
    def of(cls, block: np.ndarray, bounds: np.ndarray) -> PackedNames:
        """Those that were packed before."""
        packed = cls.__new__(cls)
        packed.block, packed.bounds = block, bounds
        return packed

    @classmethod
    def joined(cls, parts: Sequence[PackedNames]) -> PackedNames:
        """The names of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.block) for part in parts)])
        bounds = [part.bounds[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls.of(np.concatenate([part.block for part in parts]), np.concatenate([[0], *bounds]))

    def take(self, indices: np.ndarray | slice) -> PackedNames:
        """Some of them; a slice, which is `slice(None)` here, takes all without a copy."""
        if isinstance(indices, slice):
            return self
        return PackedNames(self[index] for index in indices.tolist())

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.block[self.bounds[index] : self.bounds[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


class Labeller:
    """Collects one class name, or none, an image, and numbers the classes at the end."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def add(self, name: str | None) -> None:
        """Notes the class of the next image; None where it has none."""
        self._codes.append(-1 if name is None else self._code_of.setdefault(name, len(self._code_of)))

    def codes(self) -> tuple[list[str], np.ndarray]:
        """Class names as they came, and (n,) int32 indices into them, -1 where there is none."""
        return list(self._code_of), np.array(self._codes, dtype=np.int32)

    def finish(self) -> tuple[tuple[str, ...] | None, np.ndarray]:
        """The classes and every image's label, as `number_classes` gives them."""
        return number_classes(*self.codes())


def number_classes(names: Sequence[str], codes: np.ndarray) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """The classes in label order, of those names that an image has.

    Args:
        names: Class names in any order; one may stand there twice.
        codes: (n,) int32 indices into them, -1 where an image has none.

    Returns:
        Class names in label order, or None unless every image has one; (n,) int32 labels, -1 where there is none
        (then labels mean nothing as indices, only whether there is one).
    """
    if not codes.size or codes.min() < 0:
        return None, codes
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
    """The file's bytes.

    Raises:
        BadImage: There are none to be had, or the path leads to what is no file: a device or a pipe may never end.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("a device or a pipe, not a file")
            require_readable(status.st_size)
            return file.read()
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except IsADirectoryError:
        raise BadImage("a folder, not a file") from None
    except (OSError, ValueError) as error:
        raise BadImage(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _without_waiting(path: str | bytes, flags: int) -> int:
    """Opening a pipe would wait for somebody to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def require_readable(size: int) -> None:
    """Raises BadImage where an image's file is longer than any image that is allowed."""
    if size > MAX_IMAGE_BYTES:
        raise BadImage(f"{size / 1e9:.1f} GB, more than the {MAX_IMAGE_BYTES / 1e9:.1f} allowed")


def sibling_names(folder: str) -> list[str]:
    """What stands in the folder; nothing where it cannot be listed."""
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


def folders_below(root: str) -> list[str]:
    """Names of the folders in a folder, hidden ones left out."""
    return [name for name in sibling_names(root) if name[0] != "." and os.path.isdir(os.path.join(root, name))]
