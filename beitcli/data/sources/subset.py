"""Subset of a source, in any order; used for `--limit` and held-out images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Blocks, Source


class Subset(Source):
    """Subset of a source; classes, labels and global indices stay those of the whole."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        """
        Args:
            source: The whole source.
            indices: (n,) integers in [0, len(source)), in any order.

        Raises:
            IndexError: An index is outside the source.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(source)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} of a source of {len(source)} images")
        self.source = source
        self.indices = indices
        self.name = source.name
        self.classes, self.splits, self.label_names = source.classes, source.splits, source.label_names
        self.intensity = source.intensity

    def __len__(self) -> int:
        return len(self.indices)

    def locate(self, index: int) -> int:
        """Returns the index in the whole source."""
        return int(self.indices[index])

    def global_index(self, index: int) -> int:
        return self.source.global_index(self.locate(index))

    def identities(self, indices: np.ndarray) -> Iterator[bytes]:
        return self.source.identities(self.indices[indices])

    def path(self, index: int) -> str:
        return self.source.path(self.locate(index))

    def read(self, index: int) -> bytes:
        return self.source.read(self.locate(index))

    def stored_bytes(self, index: int) -> int | None:
        return self.source.stored_bytes(self.locate(index))

    def inner(self) -> tuple[Source, ...]:
        return (self.source,)

    def image(self, index: int) -> Image.Image:
        return self.source.image(self.locate(index))

    def blocks(self) -> Blocks | None:
        """Returns the remaining blocks of the whole source; None unless `indices` are ascending."""
        whole = self.source.blocks()
        if whole is None or (np.diff(self.indices) <= 0).any():
            return None
        block_of = np.searchsorted(np.cumsum(whole.lengths), self.indices, side="right")
        return Blocks(np.unique(block_of, return_counts=True)[1], whole.together, whole.are_remote)

    def prefetch(self, indices: np.ndarray) -> None:
        self.source.prefetch(self.indices[indices])

    def pixels(self, index: int) -> np.ndarray:
        return self.source.pixels(self.locate(index))

    def label(self, index: int) -> int | None:
        return self.source.label(self.locate(index))

    def label_vector(self, index: int) -> np.ndarray | None:
        return self.source.label_vector(self.locate(index))

    def label_vectors(self) -> np.ndarray:
        return self.source.label_vectors()[self.indices]
