"""Draws label maps: a palette of distinct colours, indexed PNG, and an overlay on the image."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

_OPACITY = 0.55


@cache
def palette() -> np.ndarray:
    """PASCAL VOC's palette, (256, 3) uint8: bits of the index, spread over the channels from the highest bit down."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def indexed(values: np.ndarray) -> Image.Image:
    """Converts (H, W) uint8 to a palette image that keeps these values."""
    picture = Image.fromarray(values)
    picture.putpalette(palette().ravel().tolist())
    return picture


def overlay(pixels: np.ndarray, values: np.ndarray) -> Image.Image:
    """Blends a mask over the image, in the colours of `indexed`.

    Args:
        pixels: (H, W, 3) uint8.
        values: (H, W) uint8; 0 (black in the palette) and 255 leave the image unchanged.
    """
    mixed = np.rint((1 - _OPACITY) * pixels + _OPACITY * palette()[values]).astype(np.uint8)
    return Image.fromarray(np.where(np.isin(values, (0, 255))[..., None], pixels, mixed))
