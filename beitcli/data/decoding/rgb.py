"""Converts a decoded image of any mode to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

from beitcli.config.intensity import FULL, IntensityRange
from beitcli.data.decoding import jpeg2000, netpbm, png, tiff
from beitcli.data.decoding.gray import gray_to_uint8
from beitcli.data.decoding.tiff import WHITE_IS_ZERO


def to_rgb(image: Image.Image, data: bytes, intensity: IntensityRange = FULL) -> Image.Image:
    """Converts a loaded image to 8-bit RGB over white.

    Args:
        data: Its file.
        intensity: Of gray numbers of more than 8 bits.
    """
    if image.format == "TIFF":
        image = _tiff_as_black_is_zero(image, intensity)
    transparent = png.transparent_pixels(image, data) if image.format == "PNG" else None
    if transparent is not None:
        image.info.pop("transparency")
        rgb = np.array(to_rgb(image, data, intensity))
        rgb[transparent] = 255
        return Image.fromarray(rgb)
    if image.mode.startswith("I") or image.mode == "F":
        stored = None if intensity == FULL else deep_gray(image, data)
        values = np.asarray(image) if stored is None else stored
        return Image.fromarray(gray_to_uint8(values, intensity=intensity)).convert("RGB")
    if image.mode == "La":  # gray times alpha, and alpha
        gray, alpha = np.moveaxis(np.asarray(image).astype(int), 2, 0)
        return Image.fromarray(np.minimum(gray + 255 - alpha, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def deep_gray(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Returns the (H, W) numbers of a loaded gray image of more than 8 bits, as stored; None for other images."""
    if not image.mode.startswith("I") and image.mode != "F":
        return None
    if image.format == "TIFF":
        return tiff.stored_gray(image, *tiff.sample_type(image))
    if image.format == "PPM" and image.mode != "F":
        return netpbm.stored_gray(image, data)
    return jpeg2000.stored_gray(image, data) if image.format == "JPEG2000" else np.asarray(image)


def _tiff_as_black_is_zero(image: Image.Image, intensity: IntensityRange) -> Image.Image:
    """Converts what is gray in a loaded TIFF to 8 bits in which black is zero; other images stay."""
    bits, kind = tiff.sample_type(image)
    is_white_zero = image.info.get(WHITE_IS_ZERO)
    if image.mode in ("I", "F") or image.mode.startswith("I;") or (image.mode == "L" and kind == 2):
        values = tiff.stored_gray(image, bits, kind)
        top = {8: 255, 12: 4095}.get(bits, 65535)
        image = Image.fromarray(gray_to_uint8(values, top, intensity if bits > 8 else FULL))
    if not is_white_zero:
        return image
    gray, *alpha = (image.convert("L") if image.mode == "1" else image).split()
    return Image.merge("LA", (ImageChops.invert(gray), *alpha)) if alpha else ImageChops.invert(gray)
