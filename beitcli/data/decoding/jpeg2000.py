"""The numbers that a gray JPEG 2000 stores; Pillow shifts those of other than 8 and 16 bits to the next of these."""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIZE = b"\xff\x4f\xff\x51"  # start of the codestream, and its first segment
_SAMPLE = 42  # bytes from there to the bits of the first component, less 1, and its sign


def sample_bits(data: bytes) -> int:
    """Returns the bits of the first component; 8 where the file does not say."""
    place = data.find(_SIZE) + _SAMPLE
    return (data[place] & 0x7F) + 1 if _SAMPLE <= place < len(data) else 8


def stored_gray(image: Image.Image, data: bytes) -> np.ndarray:
    """Returns (H, W) integers as stored, of 16 bits at most.

    Args:
        image: Loaded, of mode L or I;16.
        data: Its file.
    """
    values = np.asarray(image)
    shift = (16 if image.mode.startswith("I") else 8) - sample_bits(data)
    return values >> shift if shift > 0 else values
