"""What every source of images offers, whatever it is kept in."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from beitcli.data.decode import decode_pixels, decode_rgb

# What, how many, of how many (0 where nobody knows), unit; without a unit: a remark, told once.
OnProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Blocks:
    """Stretches of a source that are read as a whole, so that images near each other are cheap together.

    Attributes:
        lengths: (m,) int64, images in each, in order; none is empty.
        together: How many a process can hold at a time.
        are_remote: They come from another machine, so that few images should not be taken out of many of them.
    """

    lengths: np.ndarray
    together: int
    are_remote: bool = False


class Source(ABC):
    """Indexed images with a path each and, where there are classes, a label.

    A source is cheap to open, safe to fork, and reads any image at random.

    Attributes:
        name: The DATA reference it came from.
        classes: Class names in label order, or None where the data has no labels.
        splits: Of the data that this is one split of, by their one name (train, validation, test); else empty.
    """

    name: str = ""
    classes: tuple[str, ...] | None = None
    splits: frozenset[str] = frozenset()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, index: int) -> str:
        """What names the image to a person: a file, or `shard.tar/member`."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The stored bytes. Raises BadImage where they cannot be read."""

    def image(self, index: int) -> Image.Image:
        """The upright RGB image. Raises BadImage."""
        return decode_rgb(self.read(index))

    def pixels(self, index: int) -> np.ndarray:
        """`image` as (H, W, 3) uint8, decoded faster where it is stored as bytes. Raises BadImage."""
        if type(self).image is Source.image:
            return decode_pixels(self.read(index))
        return np.array(self.image(index))

    def label(self, index: int) -> int | None:
        """Index into `classes`, or None."""
        return None

    def global_index(self, index: int) -> int:
        """The image's index in the whole DATA, which its draws are keyed by, whatever part of it this source is."""
        return index

    def blocks(self) -> Blocks | None:
        """How it is best read; None where any image costs the same."""
        return None

    def prefetch(self, indices: np.ndarray) -> None:  # noqa: B027 - most have nothing to begin
        """Told which images are read soon: a source that fetches them may begin. Never fails."""

    def fingerprint(self) -> str:
        """SHA-256 over the paths and labels in order: equal data in equal order, equal fingerprint."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.path(index)}\0{self.label(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
