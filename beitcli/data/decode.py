"""Decodes an image file's bytes to upright RGB pixels, or raises `BadImage` with the reason in a few words.

Every error or warning of Pillow about a damaged file becomes one `BadImage`, whose message names no path. Costs
Pillow's own decoding plus about 0.1 ms for a 500x375 photograph.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from beitcli.errors import BadImage

# Twice Pillow's own warning level, its hard limit: 512 MiB as RGB. The largest photographs of ImageNet-22k and of
# common camera sets have under 120 megapixels; a file of a few kilobytes can claim billions.
MAX_PIXELS = 178_956_970

# An allow-list, because Pillow also opens EPS by running Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "MPO", "JPEG2000", "AVIF")

_RGB = 3  # torchvision's ImageReadMode

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BEGINNINGS = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<head", "HTML"),
    (b"<?xml", "XML"),
    (b"<svg", "SVG"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"%pdf", "PDF"),
    (b"%!ps", "PostScript"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"{", "JSON"),
)
_IMAGE_BEGINNINGS = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
)


def decode_rgb(data: bytes) -> Image.Image:
    """Decodes the first frame to 8-bit RGB, upright by its EXIF orientation, transparency composited over white.

    16-bit gray becomes round(value / 257). Integers beyond 16 bits and floats beyond [0, 255] are stretched from their
    minimum to their maximum; floats within [0, 1] are multiplied by 255. Embedded colour profiles are not applied.

    Raises:
        BadImage: Empty, no image, truncated, damaged, or of more than MAX_PIXELS.
    """
    with _pillow_contained(data):
        image = _open(data)
        image.load()
        rgb = _to_rgb(image)
        rgb.info = {}  # a leftover EXIF orientation would rotate the image again when saved
        return _upright(rgb, _orientation(image))


def decode_pixels(data: bytes) -> np.ndarray:
    """Decodes like `decode_rgb`, to (H, W, 3) uint8: the same pixels, and BadImage for the same reasons.

    Plain JPEG goes through torchvision, which saves Pillow's copies: 1.5 ms instead of 1.9 for a 500x375 photograph.
    """
    with _pillow_contained(data):
        pixels = _decode_plain_jpeg(data)
    return np.array(decode_rgb(data)) if pixels is None else pixels


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """Returns (H, W, 3) uint8; None for Pillow to decode: anything but complete, upright, three-channel JPEG."""
    decode = _jpeg_decoder()
    if decode is None or not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    image = _open(data)
    if image.format != "JPEG" or image.mode != "RGB" or _orientation(image) != 1:
        return None
    try:
        import torch  # imported already if there is a decoder

        with _quiet_in_a_worker():
            pixels = decode(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
    except RuntimeError:
        return None
    return pixels.permute(1, 2, 0).numpy() if pixels.shape == (3, image.height, image.width) else None


@contextmanager
def _quiet_in_a_worker() -> Iterator[None]:
    """Context without stderr: libjpeg prints a line for a damaged file that it can decode, and breaks the progress bar.

    Only in loader workers: in the main process other threads write to stderr.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    kept = os.dup(2)
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@cache
def _jpeg_decoder() -> Callable[..., Any] | None:
    """Returns torchvision's operator (bytes, mode, whether to rotate), or None if its build has none.

    `torchvision.io.decode_jpeg` is not used, because it warns at every call that torchcodec will replace it.
    """
    try:
        import torch
        import torchvision.io  # noqa: F401 - registers it

        return torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None


def read_upright_size(data: bytes) -> tuple[int, int]:
    """Returns the (width, height) of `decode_rgb`, from the header alone.

    Raises:
        BadImage: Empty, no image, a damaged header, or more than MAX_PIXELS.
    """
    with _pillow_contained(data):
        image = _open(data)
        width, height = image.size
        if image.format == "TIFF":  # only some versions of Pillow have swapped `size` here
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])  # type: ignore[attr-defined]
        if _orientation(image, data) >= 5:
            return height, width
        return width, height


def decode_index_mask(data: bytes) -> np.ndarray:
    """Decodes a segmentation mask to class indices.

    Returns:
        (H, W) uint8: gray values as stored (also those of 1, 2 and 4 bits), or palette indices.

    Raises:
        BadImage: As in `decode_rgb`, or a mask in colour, in JPEG, or with an index above 255.
    """
    with _pillow_contained(data):
        image = _open(data)
        if image.format in ("JPEG", "MPO"):
            raise BadImage("a JPEG as mask: its compression changes class indices", "Store masks as PNG.")
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise BadImage(f"a mask in mode {image.mode}, not class indices in gray or palette", "Store masks as PNG.")
        image.load()
        indices = np.asarray(_upright(image, _orientation(image)))
        greatest, least = int(indices.max()), int(indices.min())
        if greatest > 255 or least < 0:
            raise BadImage(f"class index {greatest if greatest > 255 else least} in a mask, outside 0..255")
        return indices.astype(np.uint8) // _gray_step(data)


def _open(data: bytes) -> Image.Image:
    """Reads the header; pixels are neither decoded nor allocated."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    image = Image.open(BytesIO(data), formats=_known_formats())
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image.width * image.height, MAX_PIXELS)
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_gray_to_uint8(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _gray_to_uint8(values: np.ndarray) -> np.ndarray:
    """Converts (H, W) uint16, int32 or float32 to (H, W) uint8."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        least, greatest = values.min(), values.max()
        if least >= 0 and greatest <= 1:
            values = values * 255
        elif least < 0 or greatest > 255:
            values = (values - least) * (255 / (greatest - least or 1))
        return np.rint(values).astype(np.uint8)
    values = values.astype(np.int64)
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest > 65535:
        values = (values - least) * 65535 // (greatest - least or 1)
    return ((values + 128) // 257).astype(np.uint8)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image, data: bytes = b"") -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if it is missing or damaged, because the pixels are still good.

    Args:
        image: Loaded; otherwise `data`, the file, is searched for EXIF that a PNG stores after its pixels.
    """
    late_exif = any(word in data for word in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))
    try:
        # PngImageFile.getexif decodes the pixels to find such EXIF; Image.getexif looks at what was read so far.
        exif = image.getexif() if late_exif or not data else Image.Image.getexif(image)
        orientation = int(exif.get(0x0112, 1))
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _gray_step(data: bytes) -> int:
    """Returns the factor by which Pillow scales the gray values of a PNG of 2 or 4 bits to 8 bits."""
    is_gray_png = data[:4] == b"\x89PNG" and data[25] == 0
    return {2: 85, 4: 17}.get(data[24], 1) if is_gray_png else 1


def _too_large(pixels: int, limit: int) -> BadImage:
    return BadImage(f"{pixels / 1e6:.1f} megapixels, more than the {limit // 100_000 / 10} allowed")


class _WarningsOff:
    """Silences Python warnings while a thread is inside: `catch_warnings` alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_warnings_off = _WarningsOff()


@contextmanager
def _pillow_contained(data: bytes) -> Iterator[None]:
    """Converts any exception of Pillow to BadImage."""
    try:
        with _warnings_off:
            yield
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("too large for the memory of this machine") from None
    except Image.DecompressionBombError as error:
        pixels, limit = re.findall(r"\d+", str(error))[:2]
        raise _too_large(int(pixels), int(limit)) from None
    except UnidentifiedImageError:
        raise BadImage(_unidentified(data)) from None
    except Exception as error:  # on damaged files Pillow raises nearly any type, from struct.error to AttributeError
        raise BadImage(_damage(error, data)) from error


def _unidentified(data: bytes) -> str:
    for beginning, kind in _IMAGE_BEGINNINGS:
        if data.startswith(beginning):
            return f"damaged: it begins like {kind}, but its header cannot be read"
    if data[4:8] == b"ftyp":
        return "not an image that Pillow reads here (it begins like HEIC, AVIF or MP4)"
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return f"not an image (it begins like {kind})"
    if not any(data):
        return f"not an image (all of its {len(data)} bytes are zero)"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in data[:256]) and head.isascii():
        return "not an image (it begins like text)"
    return f"not an image (or none of {', '.join(_known_formats())})"


def _damage(error: Exception, data: bytes) -> str:
    what = " ".join(str(error).split())[:120]
    cut_webp = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if isinstance(error, EOFError) or cut_webp or "truncated" in what.lower():
        return f"truncated: its {len(data)} bytes end before its pixels do"
    return f"damaged: {what or type(error).__name__}"
