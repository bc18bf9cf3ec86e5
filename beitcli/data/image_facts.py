"""What an image file is, told from its header and, for numbers of more than 8 bits, from its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from beitcli.data.decode import open_header, orientation_of, pillow_contained
from beitcli.data.decoding import jpeg2000, netpbm, tiff
from beitcli.data.decoding.rgb import deep_gray

DARK = 32  # of 255: an image with no brighter value looks black
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an image file says.

    Attributes:
        format: Pillow's name, such as JPEG.
        size: (width, height) as stored.
        mode: Pillow's, such as RGB or I;16.
        bits: Of the first sample; 32 for floats.
        orientation: EXIF's, 1 to 8.
        pages: Of a TIFF; 1 for other formats.
        frames: Of an animation; 1 for other images.
    """

    format: str
    size: tuple[int, int]
    mode: str
    bits: int
    orientation: int
    pages: int
    frames: int
    has_alpha: bool

    @property
    def is_deep(self) -> bool:
        """Whether its numbers have more than 8 bits."""
        return self.bits > 8


def read_facts(data: bytes) -> ImageFacts:
    """Reads the header of an image file.

    Raises:
        BadImage: As in `decode_rgb`, for what the header shows.
    """
    with pillow_contained(data):
        image = open_header(data)
        frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
        return ImageFacts(
            format=image.format or "?",
            size=image.size,
            mode=image.mode,
            bits=_bits(image, data),
            orientation=orientation_of(image, data),
            pages=frames if image.format == "TIFF" else 1,
            frames=1 if image.format == "TIFF" else frames,
            has_alpha=image.has_transparency_data,
        )


def _bits(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":
        return tiff.sample_type(image)[0]
    if image.format == "PNG":
        return data[24] if data[25] != 3 else 8
    if image.format == "JPEG2000":
        return jpeg2000.sample_bits(data)
    if image.format == "PPM" and image.mode in ("I", "L"):
        return netpbm.sample_bits(data)
    return 16 if image.mode.startswith("I;16") else 32 if image.mode in _DEEP_MODES else 8


@dataclass(frozen=True)
class PixelFacts:
    """What the pixels of an image are.

    Attributes:
        brightest: The greatest of the decoded 8-bit values.
        is_flat: Whether all pixels are equal.
    """

    brightest: int
    is_flat: bool

    @property
    def is_dark(self) -> bool:
        """Whether it would look black: the range of its numbers does not fit the numbers."""
        return self.brightest < DARK


def pixel_facts(pixels: np.ndarray) -> PixelFacts:
    """Takes the decoded (H, W, 3) uint8 pixels."""
    return PixelFacts(int(pixels.max()), bool((pixels == pixels[:1, :1]).all()))


def stored_range(data: bytes) -> tuple[float, float] | None:
    """Returns the least and the greatest number of a gray image of more than 8 bits; None for other images.

    Raises:
        BadImage: As in `decode_rgb`.
    """
    with pillow_contained(data):
        image = open_header(data)
        image.load()
        values = deep_gray(image, data)
        if values is None:
            return None
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return float(finite.min()), float(finite.max())
