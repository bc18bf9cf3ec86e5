"""Examines one image: what its file is, what its pixels are, and the numbers by which copies of it are found.

Two 64-bit difference hashes (one compares neighbours in a row of 9 x 8 gray values, one in a column of 8 x 9) change
little with size, compression and brightness; a picture of 6 x 6 colours then tells copies from mere likenesses.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from beitcli.config.intensity import FULL, IntensityRange
from beitcli.data.decode import decode_rgb
from beitcli.data.image_facts import ImageFacts, pixel_facts, read_facts
from beitcli.errors import BadImage

DIGEST_BYTES = 16
SMALL = 6  # side of the picture of colours
TINY = 32  # pixels on the shorter side
_LONG = 4  # a longer side of so many shorter ones
_FORMATS_OF = {  # of an ending: what the file may be
    "jpg": ("JPEG", "MPO"), "jpeg": ("JPEG", "MPO"), "jpe": ("JPEG", "MPO"), "jfif": ("JPEG", "MPO"),
    "mpo": ("JPEG", "MPO"), "png": ("PNG",), "apng": ("PNG",), "webp": ("WEBP",), "bmp": ("BMP",), "gif": ("GIF",),
    "tif": ("TIFF",), "tiff": ("TIFF",), "avif": ("AVIF",), "avifs": ("AVIF",), "heic": ("HEIF",), "heif": ("HEIF",),
    "hif": ("HEIF",),
}  # fmt: skip


@dataclass(frozen=True)
class Examined:
    """What one image is.

    Attributes:
        index: In all images that are examined.
        size: (width, height) upright; (0, 0) if it cannot be read.
        marks: Names of `marks.MARKS` that hold for it.
        words: More on some of the marks, such as why it cannot be read.
        file_digest, pixel_digest: DIGEST_BYTES each; the latter of the decoded pixels.
        hashes: Of rows and of columns, 64 bits each.
        small: (SMALL * SMALL * 3,) bytes.
    """

    index: int
    stored_bytes: int = 0
    format: str = ""
    size: tuple[int, int] = (0, 0)
    marks: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    file_digest: bytes = b""
    pixel_digest: bytes = b""
    hashes: tuple[int, int] = (0, 0)
    small: bytes = b""


def examine(index: int, path: str, data: bytes, intensity: IntensityRange = FULL) -> Examined:
    """Examines an image file; one that cannot be read gets the mark `unreadable` and a reason."""
    try:
        facts = read_facts(data)
        image = decode_rgb(data, intensity)
    except BadImage as error:
        return unreadable(index, error, len(data))
    pixels = np.asarray(image)
    words = _marks(path, facts, pixels)
    return Examined(
        index,
        len(data),
        facts.format,
        image.size,
        tuple(words),
        {mark: text for mark, text in words.items() if text},
        _digest(data),
        _digest(pixels.tobytes() + repr(pixels.shape).encode()),
        difference_hashes(image),
        image.resize((SMALL, SMALL), Image.Resampling.BOX).tobytes(),
    )


def unreadable(index: int, error: BadImage, stored_bytes: int = 0) -> Examined:
    """Returns what is known of an image that cannot be read."""
    return Examined(index, stored_bytes, marks=("unreadable",), words={"unreadable": error.message})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def difference_hashes(image: Image.Image) -> tuple[int, int]:
    """Returns the difference hashes of rows and of columns, as unsigned integers of 64 bits."""
    gray = image.convert("L")
    rows = np.asarray(gray.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    columns = np.asarray(gray.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    return _bits(rows[:, 1:] > rows[:, :-1]), _bits(columns[1:] > columns[:-1])


def _bits(rises: np.ndarray) -> int:
    return int.from_bytes(np.packbits(rises).tobytes(), "big")


def _marks(path: str, facts: ImageFacts, pixels: np.ndarray) -> dict[str, str]:
    """Returns the marks of a readable image, each with more words or none."""
    of_pixels, (height, width) = pixel_facts(pixels), pixels.shape[:2]
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    is_misnamed = ending in _FORMATS_OF and facts.format not in _FORMATS_OF[ending]
    held = {
        "misnamed": is_misnamed,
        "one-colour": of_pixels.is_flat,
        "dark": facts.is_deep and of_pixels.is_dark and not of_pixels.is_flat,
        "tiny": min(width, height) < TINY,
        "long": max(width, height) > _LONG * min(width, height),
        "stack": facts.pages > 1,
        "animated": facts.frames > 1,
        "deep": facts.is_deep,
        "cmyk": facts.mode in ("CMYK", "YCCK"),
        "alpha": facts.has_alpha,
        "rotated": facts.orientation != 1,
    }
    words = {
        "misnamed": f"it is a {facts.format}",
        "stack": f"{facts.pages:,} pages",
        "animated": f"{facts.frames:,} frames",
        "tiny": f"{width} x {height} pixels",
        "long": f"{width} x {height} pixels",
        "deep": f"{facts.bits} bits",
        "dark": f"{facts.bits} bits, and {of_pixels.brightest} of 255 at most",
    }
    return {name: words.get(name, "") for name, holds in held.items() if holds}
