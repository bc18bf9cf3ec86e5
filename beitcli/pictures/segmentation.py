"""Label maps as pictures: a palette of distinct colours, indexed PNG, and the image with its classes over it."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

_OPACITY = 0.55


@cache
def palette() -> np.ndarray:
    """(256, 3) uint8, PASCAL VOC's: the bits of the index, spread over the channels from the highest bit down."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def indexed(values: np.ndarray) -> Image.Image:
    """(H, W) uint8 as a PNG-ready picture whose pixels are still those values."""
    picture = Image.fromarray(values)
    picture.putpalette(palette().ravel().tolist())
    return picture


def overlay(pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The image with its classes in colour over it; class 0 takes the palette's second colour, as its first is black.

    Args:
        pixels: (H, W, 3) uint8.
        labels: (H, W) uint8; 255 leaves the image as it is.
    """
    colours = palette()[(labels.astype(np.int64) + 1) % 256]
    mixed = np.rint((1 - _OPACITY) * pixels + _OPACITY * colours).astype(np.uint8)
    return Image.fromarray(np.where((labels == 255)[..., None], pixels, mixed))
