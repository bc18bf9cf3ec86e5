"""The numbers that a PGM stores; Pillow stretches them from the file's largest value to 255 or 65535."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from beitcli.errors import BadImage


def stored_gray(image: Image.Image, data: bytes) -> np.ndarray:
    """Returns (H, W) integers as stored, also those above the largest value that the header names.

    Args:
        image: A PGM that Pillow has opened, or loaded.
        data: Its file.
    """
    tile = _tile(data)
    count, raster = image.width * image.height, data[tile.offset :]
    if data.startswith(b"P2"):
        words = re.sub(rb"#[^\r\n]*", b"", raster).split(maxsplit=count)[:count]
        values = np.array([int(word) for word in words], np.int64)
    else:
        wide = image.mode == "I"  # of a largest value above 255
        values = np.frombuffer(raster[: count * (2 if wide else 1)], ">u2" if wide else np.uint8)
    if len(values) < count:
        raise BadImage(f"truncated: its {len(data)} bytes end before its pixels do")
    return values.reshape(image.height, image.width)


def sample_bits(data: bytes) -> int:
    """Returns the bits of the largest value that the header of a PGM or PPM names."""
    settings = _tile(data).args
    if isinstance(settings, str):  # of 8 or of 16 bits, which Pillow reads as they are
        return 16 if "16" in settings else 8
    return int(settings[-1]).bit_length()


def _tile(data: bytes) -> Any:
    """Returns where the pixels of a file begin, and how Pillow reads them, which a loaded image has forgotten."""
    return Image.open(BytesIO(data), formats=("PPM",)).tile[0]
