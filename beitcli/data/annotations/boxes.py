"""The objects of an image: boxes in pixels of the upright image, from the left and upper edge, and their classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from beitcli.data.annotations.instance_masks import Outline


@dataclass(frozen=True)
class BoxLabels:
    """Everything that is marked in one image.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1.
        labels: (n,) int64.
        crowd: (n,) bool, True where the box holds many objects at once; nothing is learned from it, and what is found
            there counts neither for nor against.
        areas: (n,) float64 in pixels, of the object where its outline is known, else of the box.
        size: (H, W) of the image.
        outlines: Of each object; None where they have not been read.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    size: tuple[int, int]
    outlines: tuple[Outline, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def renumbered(self, label_of: np.ndarray) -> BoxLabels:
        """With other numbers for the classes: (classes,) int64."""
        return replace(self, labels=label_of[self.labels])


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """x0 y0 x1 y1 around what is True in (H, W) bool; None where nothing is.

    The edges are those of the outermost pixels, so a single pixel has an area of 1.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
