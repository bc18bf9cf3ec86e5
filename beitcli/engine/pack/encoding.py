"""One image as a member of a shard: a copy of its JPEG, a JPEG of its pixels, or the pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from beitcli.config.intensity import IntensityRange
from beitcli.data.decode import decode_pixels
from beitcli.data.decoding.netpbm import plain_ppm
from beitcli.errors import BadImage

_JPEG, _JPEG_SIDE = b"\xff\xd8", 65_500  # its beginning; the longest side that libjpeg writes


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
        kind: `jpeg`, or `raw` for PPM.
        quality: Of JPEG.
        short_side: Longest shorter side in pixels; None to keep every size.
    """

    kind: Literal["jpeg", "raw"]
    quality: int = 95
    short_side: int | None = None

    @property
    def suffix(self) -> str:
        return ".jpg" if self.kind == "jpeg" else ".ppm"


@dataclass(frozen=True)
class Encoded:
    """An encoded image.

    Attributes:
        data: The file.
        is_copy: Whether it is the file of DATA, byte for byte.
        levels: Mean absolute difference of its pixels from those that were encoded, in levels of 255.
    """

    data: bytes
    is_copy: bool = False
    levels: float = 0.0


def encode(data: bytes, encoding: Encoding, intensity: IntensityRange) -> Encoded:
    """Encodes an image file for a shard; of a JPEG that is made, also decodes the result to compare it.

    Raises:
        BadImage: It cannot be decoded, or has more pixels on a side than a JPEG.
    """
    decoded = decode_pixels(data, intensity)
    pixels = shrunk(decoded, encoding.short_side)
    if encoding.kind == "raw":
        return Encoded(plain_ppm(pixels))
    if pixels is decoded and data.startswith(_JPEG):
        return Encoded(data, is_copy=True)
    if max(pixels.shape) > _JPEG_SIDE:
        raise BadImage(f"a side of {max(pixels.shape):,} pixels; a JPEG has {_JPEG_SIDE:,} at most")
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=encoding.quality)
    stored = file.getvalue()
    apart = np.abs(decode_pixels(stored).astype(np.int16) - pixels)
    return Encoded(stored, levels=float(apart.mean()))


def shrunk(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """Shrinks (H, W, 3) uint8 by Lanczos to the shorter side, aspect kept; returns what is not longer unchanged."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short_side is None or short <= short_side:
        return pixels
    size = [round(side * short_side / short) for side in (width, height)]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.LANCZOS))
