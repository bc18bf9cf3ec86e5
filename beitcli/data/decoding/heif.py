"""HEIC and HEIF, the format of many phones, by pillow-heif, which is imported when the first such file is met.

Where it is not installed such files are no images: folders count and name them, and a list that names one is told.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from beitcli.runtime.extras import install_line

ENDINGS = ("heic", "heif", "hif")
FORMAT = "HEIF"  # Pillow's name
INSTALL = install_line("heic")
WAY_OUT = f"HEIC is read with: {INSTALL}"
_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heif(data: bytes) -> bool:
    """Whether a file begins like HEIF; AVIF, whose own brand comes first in most files, is not meant."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS and b"avif" not in data[16:48]


@cache
def is_installed() -> bool:
    """Whether pillow-heif is installed; it is not imported."""
    try:
        return importlib.util.find_spec("pillow_heif") is not None
    except ValueError:  # it is kept from being imported
        return False


@cache
def register() -> bool:
    """Makes Pillow read HEIF, upright and with 8 bits; returns whether it can."""
    if not is_installed():
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return True
