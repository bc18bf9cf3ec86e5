"""Netpbm: the numbers that a PGM stores, which Pillow stretches to 255 or 65535, and the pixels of a plain PPM.

A PPM (`P6`) is a header of one line and the pixels as they are. Reading its pixels is a view of the file, without a
copy; Pillow takes a millisecond for a photograph.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from beitcli.errors import BadImage

_PLAIN = re.compile(rb"P6\n([1-9][0-9]{0,8}) ([1-9][0-9]{0,8})\n255\n")  # as `plain_ppm` and Pillow write it


def plain_ppm(pixels: np.ndarray) -> bytes:
    """Returns (H, W, 3) uint8 as a PPM file."""
    return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def plain_pixels(data: bytes, most: int) -> np.ndarray | None:
    """Returns a read-only view (H, W, 3) uint8 of a PPM file of 8 bits; None for Pillow to read: anything else.

    Args:
        most: Pixels; images of more are left to Pillow, too.
    """
    header = _PLAIN.match(data)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if width * height > most or len(data) - header.end() < 3 * width * height:
        return None
    pixels = np.frombuffer(data, np.uint8, 3 * width * height, header.end())
    return pixels.reshape(height, width, 3)


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
        raise BadImage(f"truncated: its {len(data):,} bytes end before its pixels do")
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
