"""Boxes and classes of the objects in an image; boxes are in pixels of the upright image, from its upper left."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from beitcli.data.annotations.instance_masks import InstanceMask


@dataclass(frozen=True)
class BoxLabels:
    """The annotated objects of one image.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1.
        labels: (n,) int64.
        crowd: (n,) bool, True where the box covers a group of objects; it is not trained on, and detections in it count
            neither as true nor as false positives.
        areas: (n,) float64 in pixels, of the object's mask if known, else of the box.
        size: (H, W) of the image.
        outlines: Instance mask of each object; None if they were not read.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    size: tuple[int, int]
    outlines: tuple[InstanceMask, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def remap_labels(self, label_of: np.ndarray) -> BoxLabels:
        """Returns the boxes with new class indices, `label_of[old]`; `label_of` is (classes,) int64."""
        return replace(self, labels=label_of[self.labels])


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Returns x0 y0 x1 y1 around the True pixels of (H, W) bool; None if there are none.

    The edges are those of the outermost pixels, so a single pixel has an area of 1.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
