"""Label maps: the class of every pixel, converted from the values of mask files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beitcli.errors import BadImage

IGNORED = 255  # label of pixels without a class, whatever the files use
MOST_CLASSES = 255


@dataclass(frozen=True, kw_only=True)
class LabelMapping:
    """Conversion between values of mask files and classes.

    Attributes:
        ignore_index: Value of pixels without a class in the files.
        reduce_zero_label: Whether 0 stands for no class too, and every other value for the class below it (ADE20K).
        classes: Number of classes; None if it is not known yet, and any value is valid.
    """

    ignore_index: int = 255
    reduce_zero_label: bool = False
    classes: int | None = None

    def to_labels(self, mask: np.ndarray) -> np.ndarray:
        """Converts values of a mask file to classes.

        Args:
            mask: (H, W) uint8.

        Returns:
            (H, W) uint8 in [0, classes), or IGNORED.

        Raises:
            BadImage: A value is not a class.
        """
        labels = self._table[mask]
        if self.classes is not None:
            outside = (labels >= self.classes) & (labels != IGNORED)
            if outside.any():
                least, most = int(self.reduce_zero_label), self.classes - 1 + int(self.reduce_zero_label)
                raise BadImage(f"it holds the value {int(mask[outside][0])}, outside {least}..{most}")
        return labels

    def to_values(self, labels: np.ndarray) -> np.ndarray:
        """Inverse of `to_labels`, for classes only: (H, W) uint8 to the values of a mask file."""
        return labels + np.uint8(self.reduce_zero_label)

    def names_of_values(self, classes: Sequence[str]) -> dict[int, str]:
        """Returns the names of the classes by their values in mask files, in the order of the classes."""
        values = self.to_values(np.arange(len(classes), dtype=np.uint8)).tolist()
        return dict(zip(values, classes, strict=True))

    @property
    def _table(self) -> np.ndarray:
        """Lookup table of `to_labels`, (256,) uint8."""
        table = np.arange(256)
        if self.reduce_zero_label:
            table = table - 1
            table[[0, 255]] = IGNORED
        table[self.ignore_index] = IGNORED
        return table.astype(np.uint8)
