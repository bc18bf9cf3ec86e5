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
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from beitcli.config.intensity import FULL, IntensityRange
from beitcli.data.decoding import heif, jpeg, netpbm, png, tiff
from beitcli.data.decoding.masks import refuse_as_mask, stored_indices
from beitcli.data.decoding.reasons import damage, unidentified
from beitcli.data.decoding.rgb import to_rgb
from beitcli.data.decoding.tiff import WHITE_IS_ZERO
from beitcli.errors import BadImage, ReadFailed

# Of the pixels that are made of the same bytes, and part of what kept features are found by: raise it with any change
# here or in `decoding/` that gives other pixels for some file. Kept tokens have the pixels' own checksums.
DECODING = 2

# Twice Pillow's own warning level, its hard limit: 512 MiB as RGB. The largest photographs of ImageNet-22k and of
# common camera sets have under 120 megapixels; a file of a few kilobytes can claim billions.
MAX_PIXELS = 178_956_970

# An allow-list, because Pillow also opens EPS by running Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "MPO", "JPEG2000", "AVIF")

_PLUGINS = ("Jpeg", "Png", "Gif", "WebP", "Tiff", "Bmp", "Ppm", "Mpo", "Jpeg2K", "Avif")

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


def decode_rgb(data: bytes, intensity: IntensityRange = FULL) -> Image.Image:
    """Decodes the first frame to 8-bit RGB, upright by its EXIF orientation, transparency composited over white.

    Gray of b bits becomes round(value * 255 / (2**b - 1)), 16-bit colour keeps its high bytes. Integers below 0 or
    beyond 16 bits and floats beyond [0, 255] are stretched from their minimum to their maximum; floats within [0, 1]
    are multiplied by 255. Where a TIFF says that white is zero, the result is inverted. Profiles are not applied.

    Args:
        intensity: Another range of gray of more than 8 bits.

    Raises:
        BadImage: Empty, no image, truncated, damaged, or of more than MAX_PIXELS.
    """
    stored = netpbm.plain_pixels(data, MAX_PIXELS)
    if stored is not None:
        return Image.fromarray(stored)
    with pillow_contained(data):
        image = open_header(data)
        image.load()
        rgb = to_rgb(image, data, intensity)
        rgb.info = {}  # a leftover EXIF orientation would rotate the image again when saved
        return _upright(rgb, orientation_of(image))


def decode_pixels(data: bytes, intensity: IntensityRange = FULL) -> np.ndarray:
    """Decodes like `decode_rgb`, to (H, W, 3) uint8: the same pixels, and BadImage for the same reasons.

    Plain JPEG goes through torchvision, which saves Pillow's copies: 1.5 ms instead of 1.9 for a 500x375 photograph. A
    plain PPM is not copied at all: the result is read-only.
    """
    stored = netpbm.plain_pixels(data, MAX_PIXELS)
    if stored is not None:
        return stored
    with pillow_contained(data):
        pixels = _decode_plain_jpeg(data)
    return np.array(decode_rgb(data, intensity)) if pixels is None else pixels


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """Returns (H, W, 3) uint8; None for Pillow to decode: anything but complete, upright, three-channel JPEG."""
    decode = _jpeg_decoder()
    if decode is None or not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    image = open_header(data)
    if image.format != "JPEG" or image.mode != "RGB" or orientation_of(image) != 1:
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
    with pillow_contained(data):
        image = open_header(data)
        width, height = image.size
        if image.format == "TIFF":  # only some versions of Pillow have swapped `size` here
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])  # type: ignore[attr-defined]
        if orientation_of(image, data) >= 5:
            return height, width
        return width, height


def decode_index_mask(data: bytes) -> np.ndarray:
    """Decodes a segmentation mask to class indices.

    Returns:
        (H, W) uint8: gray values as stored, whatever their bits, the largest value of a PGM, or which gray of a TIFF or
        PBM is zero (the black of a PBM is 1); or palette indices.

    Raises:
        BadImage: As in `decode_rgb`, or a mask in colour, in a compression that changes pixels, or with an index
            above 255.
    """
    with pillow_contained(data):
        image = open_header(data)
        refuse_as_mask(image, data)
        indices = stored_indices(image, data)
        greatest, least = int(indices.max()), int(indices.min())
        if greatest > 255 or least < 0:
            raise BadImage(f"class index {greatest if greatest > 255 else least} in a mask, outside 0..255")
        return np.asarray(_upright(Image.fromarray(indices.astype(np.uint8)), orientation_of(image)))


def open_header(data: bytes) -> Image.Image:
    """Reads the header; pixels are neither decoded nor allocated."""
    if not data:
        raise BadImage("empty file (0 bytes)")
    if heif.is_heif(data):
        return _open_heif(data)
    white_is_zero = False
    if data.startswith(b"\x89PNG"):
        data = png.without_metadata(data)
    elif data.startswith((b"II", b"MM")):
        data, white_is_zero = tiff.as_black_is_zero(data)
    try:
        image = Image.open(BytesIO(data), formats=_known_formats())
    except UnidentifiedImageError:
        if not data.startswith(b"\xff\xd8"):
            raise
        image = Image.open(BytesIO(jpeg.without_metadata(data)), formats=_known_formats())
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image.width * image.height, MAX_PIXELS)
    if image.format == "TIFF":
        tiff.prepare(image, white_is_zero)
        image.info[WHITE_IS_ZERO] = white_is_zero
    return image


def _open_heif(data: bytes) -> Image.Image:
    """Opens HEIF, which is upright already."""
    if not heif.register():
        raise BadImage(f"a HEIC image, for which a library is missing: {heif.INSTALL}", heif.WAY_OUT)
    image = Image.open(BytesIO(data), formats=(heif.FORMAT,))
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image.width * image.height, MAX_PIXELS)
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Loads Pillow's plugins of these formats; all 43, by `Image.init`, take three times as long."""
    for plugin in _PLUGINS:
        with suppress(ImportError):  # of AVIF, in an older Pillow
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def orientation_of(image: Image.Image, data: bytes = b"") -> int:
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
def pillow_contained(data: bytes) -> Iterator[None]:
    """Converts any exception of Pillow to BadImage."""
    try:
        with _warnings_off:
            yield
    except BadImage:
        raise
    except MemoryError:
        raise ReadFailed("too large for the memory of this machine") from None
    except Image.DecompressionBombError as error:
        pixels, limit = re.findall(r"\d+", str(error))[:2]
        raise _too_large(int(pixels), int(limit)) from None
    except UnidentifiedImageError:
        raise BadImage(unidentified(data, _known_formats())) from None
    except Exception as error:  # on damaged files Pillow raises nearly any type, from struct.error to AttributeError
        raise BadImage(damage(error, data)) from error
