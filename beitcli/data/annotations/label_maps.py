"""Label maps: the class of every pixel, from mask files in the data set's own numbering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beitcli.errors import BadImage

IGNORED = 255  # in our numbering, whatever it is in the files
MOST_CLASSES = 255


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """How the values of mask files become classes.

    Attributes:
        ignore_index: The value in the files that stands for no class.
        reduce_zero_label: Whether 0 stands for no class too, and every other value for the class below it (ADE20K).
        classes: How many there are; None where that is still to be seen, and any value will do.
    """

    ignore_index: int = 255
    reduce_zero_label: bool = False
    classes: int | None = None

    def to_labels(self, mask: np.ndarray) -> np.ndarray:
        """A mask file's values to classes.

        Args:
            mask: (H, W) uint8.

        Returns:
            (H, W) uint8 in [0, classes), or IGNORED.

        Raises:
            BadImage: A value is no class.
        """
        labels = self._table[mask]
        if self.classes is not None:
            outside = (labels >= self.classes) & (labels != IGNORED)
            if outside.any():
                least, most = int(self.reduce_zero_label), self.classes - 1 + int(self.reduce_zero_label)
                raise BadImage(f"it holds the value {int(mask[outside][0])}, outside {least}..{most}")
        return labels

    def to_values(self, labels: np.ndarray) -> np.ndarray:
        """The inverse, of classes alone: (H, W) uint8 to the values a mask file would hold."""
        return labels + np.uint8(self.reduce_zero_label)

    @property
    def _table(self) -> np.ndarray:
        """(256,) uint8."""
        table = np.arange(256)
        if self.reduce_zero_label:
            table = table - 1
            table[[0, 255]] = IGNORED
        table[self.ignore_index] = IGNORED
        return table.astype(np.uint8)
