"""Interface of image sources (`Source`), common to all formats."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from beitcli.config.intensity import FULL, IntensityRange
from beitcli.data.decode import decode_pixels, decode_rgb

_AT_ONCE = 8192  # images

# What, number done, total (0 if unknown), unit. With an empty unit: a remark, reported once.
OnProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Blocks:
    """Consecutive images of a source that are read together, such as row groups of parquet.

    Attributes:
        lengths: (m,) int64, number of images per block, in order; none is empty.
        together: Number of blocks that a process can hold in memory.
        are_remote: Whether blocks are downloaded, so that reading a few images from many of them is expensive.
    """

    lengths: np.ndarray
    together: int
    are_remote: bool = False


class Source(ABC):
    """Map-style dataset of images, each with a path and, if there are classes, a label.

    A source is cheap to open, safe to fork, and has random access.

    Attributes:
        name: The DATA reference.
        classes: Class names in label order; None if the data has no labels.
        label_names: Names of the numbers of `label_vector`; None if the data has none.
        intensity: Range of gray of more than 8 bits; set by `use_intensity`.
        splits: Canonical names (train, validation, test) of all splits of the data, if this is one of them; else empty.
    """

    name: str = ""
    classes: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    splits: frozenset[str] = frozenset()
    intensity: IntensityRange = FULL

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, index: int) -> str:
        """Returns a name of the image for the user: a file, or `shard.tar/member`."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Returns the encoded image file. Raises BadImage if it cannot be read."""

    def image(self, index: int) -> Image.Image:
        """Returns the decoded RGB image, upright. Raises BadImage."""
        return decode_rgb(self.read(index), self.intensity)

    def pixels(self, index: int) -> np.ndarray:
        """Returns `image` as (H, W, 3) uint8, decoded faster if it is stored as a file. Raises BadImage."""
        if type(self).image is Source.image:
            return decode_pixels(self.read(index), self.intensity)
        return np.array(self.image(index))

    def label(self, index: int) -> int | None:
        """Returns the index into `classes`, or None."""
        return None

    def label_vector(self, index: int) -> np.ndarray | None:
        """Returns (L,) float32, a number for each of `label_names`, or None."""
        return None

    def label_vectors(self) -> np.ndarray:
        """Returns (n, L) float32, the `label_vector` of every image; for data that has `label_names`."""
        return np.stack([np.asarray(self.label_vector(index), dtype=np.float32) for index in range(len(self))])

    def stored_bytes(self, index: int) -> int | None:
        """Returns the size of the encoded file, if it is known without reading it; else None."""
        return None

    def inner(self) -> tuple[Source, ...]:
        """Returns the sources whose images it passes on; empty if it reads the images itself."""
        return ()

    def leaves(self) -> Iterator[Source]:
        """Yields the sources that read the images themselves: this one, or those within it."""
        inner = self.inner()
        for each in inner:
            yield from each.leaves()
        if not inner:
            yield self

    def use_intensity(self, intensity: IntensityRange) -> None:
        """Sets the range of gray of more than 8 bits, in the sources within this one too."""
        self.intensity = intensity
        for each in self.inner():
            each.use_intensity(intensity)

    def global_index(self, index: int) -> int:
        """Returns the index of the image in the whole DATA, also for a subset; it keys the random numbers."""
        return index

    def blocks(self) -> Blocks | None:
        """Returns the blocks in which it should be read; None if random access to images is cheap."""
        return None

    def prefetch(self, indices: np.ndarray) -> None:  # noqa: B027 - local sources do nothing
        """Announces images that are read soon, so that a remote source can start the download. Never fails."""

    def fingerprint(self) -> str:
        """Returns the SHA-256 of paths and labels in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _AT_ONCE):
            digest.update(b"".join(self.identities(np.arange(start, min(start + _AT_ONCE, len(self))))))
        return digest.hexdigest()

    def identities(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yields what the fingerprint covers of each image: `PATH\0LABEL\n`; overridden where it can be faster."""
        for index in indices.tolist():
            yield f"{self.path(index)}\0{self.label(index)}\n".encode(errors="surrogateescape")
