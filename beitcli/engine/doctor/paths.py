"""Names of the images of all splits, by their index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beitcli.data.sources.base import Source


class Paths:
    """Names of images by their index in all parts."""

    def __init__(self, parts: Sequence[Source], starts: np.ndarray) -> None:
        self.parts, self.starts = parts, starts

    def place(self, index: int) -> tuple[Source, int]:
        """Returns the part and the index in it."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[number], int(index - self.starts[number])

    def __call__(self, index: int) -> str:
        part, inner = self.place(index)
        return part.path(inner)
