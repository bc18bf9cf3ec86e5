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


def overlay(pixels: np.ndarray, values: np.ndarray) -> Image.Image:
    """The image with its mask over it, in the colours that `indexed` gives the mask.

    Args:
        pixels: (H, W, 3) uint8.
        values: (H, W) uint8; 0, whose colour is black, and 255 leave the image as it is.
    """
    mixed = np.rint((1 - _OPACITY) * pixels + _OPACITY * palette()[values]).astype(np.uint8)
    return Image.fromarray(np.where(np.isin(values, (0, 255))[..., None], pixels, mixed))
