"""Helpers of the formats: image file names, packed arrays of names, class labels, reading files."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from beitcli.data.decoding import heif
from beitcli.errors import BadImage, DataError, ReadFailed
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.regular_files import open_regular

EXTENSIONS: tuple[str, ...] = (  # of the formats that are decoded; without HEIC the same on every machine
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "gif", "tif", "tiff", "avif", "avifs"),
    *("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "ppm", "pgm", "pbm", "pnm", "pfm"),
)
if heif.is_installed():
    EXTENSIONS = (*EXTENSIONS, *heif.ENDINGS)
_IMAGE = re.compile(rb"\.(?:" + "|".join(EXTENSIONS).encode() + rb")\Z", re.IGNORECASE)
_MASK_FOLDERS = ("masks", "annotations")
MAX_IMAGE_BYTES = 2_147_483_648  # the largest image that is decoded takes 1.4 GB as 16-bit RGBA
_OF_THE_FILE = {  # and not of the disk or the network
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EOVERFLOW),
}
_INTEGER = re.compile(r"-?[0-9]{1,1000}")  # Python itself converts 4,300 digits at most


def is_image_name(name: bytes) -> bool:
    """Whether the name has the extension of an image format, in any case."""
    return _IMAGE.search(name) is not None


class PackedNames:
    """Byte strings in one array: 8 bytes overhead per string, and no copies after fork.

    A million `str` paths would take some 150 MB, and the reference counts of every worker would copy them.

    Attributes:
        block: (bytes,) uint8.
        bounds: (n + 1,) int64, start of each string and end of the last.
    """

    def __init__(self, names: Iterable[bytes]) -> None:
        block, bounds = bytearray(), array("q", [0])
        for name in names:
            block += name
            bounds.append(len(block))
        self.block, self.bounds = np.frombuffer(block, dtype=np.uint8), np.frombuffer(bounds, dtype=np.int64)

    @classmethod
    def of(cls, block: np.ndarray, bounds: np.ndarray) -> PackedNames:
        """Wraps existing arrays."""
        packed = cls.__new__(cls)
        packed.block, packed.bounds = block, bounds
        return packed

    @classmethod
    def joined(cls, parts: Sequence[PackedNames]) -> PackedNames:
        """Concatenates several."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.block) for part in parts)])
        bounds = [part.bounds[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        return cls.of(np.concatenate([part.block for part in parts]), np.concatenate([[0], *bounds]))

    def take(self, indices: np.ndarray | slice) -> PackedNames:
        """Selects strings by index; a slice must be `slice(None)`, and selects all without a copy."""
        if isinstance(indices, slice):
            return self
        return PackedNames(self[index] for index in indices.tolist())

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.block[self.bounds[index] : self.bounds[index + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


def identities(
    names: PackedNames,
    prefix: Callable[[int], bytes],
    prefix_of: np.ndarray,
    labels: np.ndarray | None,
    indices: np.ndarray,
) -> Iterator[bytes]:
    """Yields `Source.identities` from arrays.

    Args:
        prefix: Maps a number to what stands before names: a folder with a slash.
        prefix_of: (n,) integers, the number of each name's.
        labels: (n,) integers; None without classes.
    """
    block, bounds = names.block.data, names.bounds
    numbers = [-1] * len(indices) if labels is None else labels[indices].tolist()
    endings = {number: b"\0None\n" if labels is None else b"\0%d\n" % number for number in set(numbers)}
    folders = prefix_of[indices].tolist()
    prefixes = {folder: prefix(folder) for folder in set(folders)}
    places = zip(bounds[indices].tolist(), bounds[indices + 1].tolist(), strict=True)
    for (start, end), folder, number in zip(places, folders, numbers, strict=True):
        yield prefixes[folder] + block[start:end] + endings[number]


class Labeller:
    """Collects the class name of each image, and numbers the classes at the end."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def add(self, name: str | None) -> None:
        """Adds the class of the next image; None if it has none."""
        self._codes.append(-1 if name is None else self._code_of.setdefault(name, len(self._code_of)))

    def codes(self) -> tuple[list[str], np.ndarray]:
        """Returns class names in order of appearance, and (n,) int32 indices into them, -1 for no class."""
        return list(self._code_of), np.array(self._codes, dtype=np.int32)

    def finish(self) -> tuple[tuple[str, ...] | None, np.ndarray]:
        """Returns the classes and the label of every image, as `number_classes` does."""
        return number_classes(*self.codes())


def look_alikes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs of names that differ in case, white space or Unicode form only, as of files from another system."""
    first: dict[str, str] = {}
    forms = [(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name) for name in names]
    return [(first[form], name) for form, name in forms if first.setdefault(form, name) != name]


def number_classes(names: Sequence[str], codes: np.ndarray) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Numbers the classes that occur.

    Args:
        names: Class names in any order, perhaps with duplicates.
        codes: (n,) int32 indices into `names`, -1 for images without a class.

    Returns:
        Class names in label order, None unless every image has one; (n,) int32 labels. Without class names, labels only
        tell whether an image has a class (-1 if not).
    """
    if not codes.size or codes.min() < 0:
        return None, codes
    classes = class_order(names[code] for code in np.unique(codes))
    label_of = {name: label for label, name in enumerate(classes)}
    return classes, np.array([label_of.get(name, -1) for name in names], dtype=np.int32)[codes]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the unique names in label order: numerically if all are integers, else by code point."""
    unique = set(names)
    if all(_INTEGER.fullmatch(name) for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def require_whole_labels(name: str, labels: np.ndarray, example: str) -> None:
    """Raises DataError if only some of the images have labels.

    Args:
        name: The DATA reference.
        labels: (n,) int32, -1 for no label.
        example: Path of the first image without a label.
    """
    missing = int((labels < 0).sum())
    if 0 < missing < len(labels):
        raise DataError(
            f"{missing:,} of the {len(labels):,} images of '{name}' have no class, such as '{example}'.",
            hint="Labels are needed here: give every image a class, or move those images away.",
        )


def read_file(path: str | bytes) -> bytes:
    """Reads a file.

    Raises:
        BadImage: It cannot be read, or is not a regular file: a device or a pipe may never end.
    """
    try:
        with open_regular(path) as file:
            require_readable(os.fstat(file.fileno()).st_size)
            return file.read()
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except IsADirectoryError:
        raise BadImage("a folder, not a file") from None
    except (OSError, ValueError) as error:
        raise read_error(error)(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_error(error: Exception) -> type[BadImage]:
    """Returns BadImage for what lies in the file, its name or its permissions, else ReadFailed."""
    number = error.errno if isinstance(error, OSError) else None
    return BadImage if number is None or number in _OF_THE_FILE else ReadFailed


def file_size(path: str | bytes) -> int | None:
    """Returns the size of a file in bytes; None if there is no such file."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None


def require_readable(size: int) -> None:
    """Raises BadImage if an image file is larger than MAX_IMAGE_BYTES."""
    if size > MAX_IMAGE_BYTES:
        raise BadImage(f"{size_text(size)}, more than the {size_text(MAX_IMAGE_BYTES)} allowed")


def count_of_images(count: int) -> str:
    """Returns `2 images` for a message; empty for none."""
    return f"{count:,} image{'s'[: count > 1]}" if count else ""


def sibling_names(folder: str) -> list[str]:
    """Lists a folder, sorted; empty if it cannot be listed."""
    try:
        return sorted(os.listdir(folder or "."))
    except OSError:
        return []


def folders_below(root: str) -> list[str]:
    """Lists the subfolders of a folder, without hidden ones."""
    return [name for name in sibling_names(root) if name[0] != "." and os.path.isdir(os.path.join(root, name))]


def mask_folders(root: str) -> tuple[str, str] | None:
    """Returns the folders ROOT/images and ROOT/masks, or ROOT/annotations; None if they are not there."""
    images = os.path.join(root, "images")
    masks = next((path for name in _MASK_FOLDERS if os.path.isdir(path := os.path.join(root, name))), None)
    return (images, masks) if masks is not None and os.path.isdir(images) else None
