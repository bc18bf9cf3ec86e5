"""Concatenation of sources; class names are merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Blocks, Source
from beitcli.data.sources.files import class_order

_PIECE = 256  # images


class Concat(Source):
    """Concatenation of sources.

    `classes` is the ordered union of the sources' class names, None unless all sources have labels; `label_names` are
    the sources' if all have the same ones; `splits` is the intersection.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """
        Args:
            sources: At least one.
        """
        self.sources = tuple(sources)
        self.name = " ".join(source.name for source in self.sources)
        self.splits = frozenset.intersection(*(source.splits for source in self.sources))
        vectors = {source.label_names for source in self.sources}
        self.label_names = vectors.pop() if len(vectors) == 1 else None
        self._starts = np.cumsum([0, *(len(source) for source in self.sources)])
        self._label_maps: list[list[int]] = []
        class_names = [source.classes for source in self.sources if source.classes is not None]
        if len(class_names) == len(self.sources):
            self.classes = class_order(name for names in class_names for name in names)
            label_of = {name: label for label, name in enumerate(self.classes)}
            self._label_maps = [[label_of[name] for name in names] for names in class_names]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the number of the source and the index in it. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(index - self._starts[number])

    def path(self, index: int) -> str:
        number, inner = self.locate(index)
        return self.sources[number].path(inner)

    def read(self, index: int) -> bytes:
        number, inner = self.locate(index)
        return self.sources[number].read(inner)

    def stored_bytes(self, index: int) -> int | None:
        number, inner = self.locate(index)
        return self.sources[number].stored_bytes(inner)

    def inner(self) -> tuple[Source, ...]:
        return self.sources

    def image(self, index: int) -> Image.Image:
        number, inner = self.locate(index)
        return self.sources[number].image(inner)

    def blocks(self) -> Blocks | None:
        """Returns the blocks of all sources; a source without blocks is split into pieces, to mix with the others."""
        parts = [source.blocks() for source in self.sources]
        if all(part is None for part in parts):
            return None
        lengths = [
            part.lengths if part is not None else _pieces(len(source))
            for source, part in zip(self.sources, parts, strict=True)
        ]
        blocks = [part for part in parts if part is not None]
        are_remote = any(part.are_remote for part in blocks)
        return Blocks(np.concatenate(lengths), min(part.together for part in blocks), are_remote)

    def prefetch(self, indices: np.ndarray) -> None:
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            self.sources[number].prefetch(indices[numbers == number] - self._starts[number])

    def pixels(self, index: int) -> np.ndarray:
        number, inner = self.locate(index)
        return self.sources[number].pixels(inner)

    def label(self, index: int) -> int | None:
        number, inner = self.locate(index)
        label = self.sources[number].label(inner)
        return None if label is None or self.classes is None else self._label_maps[number][label]

    def label_vector(self, index: int) -> np.ndarray | None:
        number, inner = self.locate(index)
        return None if self.label_names is None else self.sources[number].label_vector(inner)

    def label_vectors(self) -> np.ndarray:
        return np.concatenate([source.label_vectors() for source in self.sources])


def _pieces(length: int) -> np.ndarray:
    """Returns the lengths of pieces of `_PIECE` images and of the rest, (m,) int64."""
    return np.diff([*range(0, length, _PIECE), length])
