"""TIFF: gray is read as stored; layouts that Pillow misreads are mended or refused by name.

| layout | Pillow | here |
|---|---|---|
| white is zero (PhotometricInterpretation 0), 16-bit or float | not inverted, or refused | opened as black is zero |
| one sample that is said to be in planes | 8-bit values from 2 or 4 bits, or refused | opened as not in planes |
| 12-bit gray | as if of 16 bits: black | divided by 4095 |
| signed 8-bit gray | -1 is 255 | negative numbers are stretched |
| unsigned 32-bit gray | from 2**31 on negative | unsigned |
| big-endian signed or float gray, compressed | bytes in the wrong order | in the machine's order, as of libtiff |
| palette of 8-bit colours (all below 256) | black | as they are |
| 16-bit RGB in planes, uncompressed | bytes taken for values | 16-bit bands |
| gray with alpha in planes; uncompressed, subsampled YCbCr | other pixels | refused |
| no PhotometricInterpretation | white is zero | refused |
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImagePalette, TiffImagePlugin

from beitcli.errors import BadImage

WHITE_IS_ZERO = "white_is_zero"  # in Image.info: whether the file said so before it was changed

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES, _PLANAR, _COLORMAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 277, 284, 320, 338, 339, 530
_INKS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 4: "a mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_NUMBERS = {2: "signed ", 3: "floating-point ", 4: "untyped ", 5: "complex ", 6: "complex "}
_LOSSY = {6: "JPEG", 7: "JPEG", 34892: "JPEG", 50001: "WebP"}

# libtiff gives numbers in the machine's order; Pillow expects the file's.
_NATIVE = {"I;16S": "I;16NS", "I;16BS": "I;16NS", "I;32S": "I;32NS", "I;32BS": "I;32NS", "F;32F": "F;32NF"}
_NATIVE["F;32BF"] = "F;32NF"


def as_black_is_zero(data: bytes) -> tuple[bytes, bool]:
    """Returns the file with gray declared as black is zero, and whether it was declared as white is zero.

    A single sample is also declared as what it is, not in planes.
    """
    try:
        order = "<" if data.startswith(b"II") else ">"
        entries = {tag: (place, form, value) for tag, place, form, value in _whole_numbers(data, order)}
    except struct.error:  # a damaged header, which Pillow names
        return data, False
    wrong = [(_PHOTOMETRIC, 0)]
    if entries.get(_SAMPLES, (0, "", 1))[2] == 1:
        wrong.append((_PLANAR, 2))
    changed = bytearray()
    for tag, value in wrong:
        place, form, found = entries.get(tag, (0, "", None))
        if found == value:
            changed = changed or bytearray(data)
            struct.pack_into(form, changed, place, 1)
    return bytes(changed) or data, entries.get(_PHOTOMETRIC, (0, "", None))[2] == 0


def _whole_numbers(data: bytes, order: str) -> Iterator[tuple[int, int, str, int]]:
    """Yields tag, place, form and value of each SHORT and LONG in the first directory; of several values the first."""
    if struct.unpack_from(order + "H", data, 2) == (43,):  # BigTIFF
        (start,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, start)
        first, size, value_at = start + 8, 20, 12
    else:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        first, size, value_at = start + 2, 12, 8
    for place in range(first, first + min(count, 4096) * size, size):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if kind in (3, 4):
            form = order + "HI"[kind - 3]
            yield tag, place + value_at, form, struct.unpack_from(form, data, place + value_at)[0]


def prepare(image: Image.Image, white_is_zero: bool) -> None:
    """Mends how an opened TIFF will be unpacked.

    Raises:
        BadImage: Pillow would unpack other pixels than the file has.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _PHOTOMETRIC not in tags or (white_is_zero and image.mode == "La"):
        raise _unread(tags)
    if image.mode in ("P", "PA") and max(tags[_COLORMAP]) < 256:  # of 8 bits, as some programs write them
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLORMAP]))
    bits = tags.get(_BITS, (1,))
    in_planes = tags.get(_PLANAR, 1) == 2
    tiles = image.tile  # type: ignore[attr-defined]
    if tiles[0].codec_name == "libtiff":
        if in_planes and image.mode in ("LA", "La", "PA"):
            raise _unread(tags)
        args = tiles[0].args
        image.tile = [tiles[0]._replace(args=(_NATIVE.get(args[0], args[0]), *args[1:]))]  # type: ignore[attr-defined]
        return
    if tags.get(_PHOTOMETRIC) == 6 and image.mode == "YCbCr" and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise _unread(tags)
    if in_planes and (len(image.getbands()) < 3 or (16 in bits and image.mode not in ("RGB", "RGBA"))):
        raise _unread(tags)
    if in_planes and 16 in bits:
        suffix = ";16L" if tags.prefix == b"II" else ";16B"
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(tile.args[0] + suffix, *tile.args[1:])) for tile in tiles
        ]


def stored_gray(image: Image.Image, bits: int, kind: int) -> np.ndarray:
    """Returns (H, W) numbers as stored: gray or a palette's indices.

    Args:
        image: Loaded, gray without alpha or a palette.
        bits, kind: What `sample_type` tells of it.
    """
    values = np.asarray(image)
    if image.mode == "L":
        values = values // {2: 85, 4: 17}.get(bits, 1)
        return values.view(np.int8) if kind == 2 and bits == 8 else values
    return values.view(np.uint32) if kind == 1 and bits == 32 else values


def sample_type(image: Image.Image) -> tuple[int, int]:
    """Returns the bits of the first sample, and what they are: 1 unsigned, 2 signed, 3 floating-point."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    return int(tags.get(_BITS, (1,))[0]), int(tags.get(_SAMPLE_FORMAT, (1,))[0])


def lossy_compression(image: Image.Image) -> str | None:
    """Returns the name of a compression that changes pixels."""
    return _LOSSY.get(image.tag_v2.get(_COMPRESSION, 1))  # type: ignore[attr-defined]


def unread_layout(data: bytes) -> str | None:
    """Returns why Pillow cannot open a TIFF whose header is whole; None if the header is damaged."""
    if data.startswith(b"MM\0+"):
        return "a big-endian BigTIFF, which is not read here"
    try:
        header = data[: 16 if data[2:4] == b"+\0" else 8]
        file, tags = BytesIO(data), TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        return _unread(tags).message if {_WIDTH, _LENGTH} <= set(tags) else None
    except Exception:
        return None


def _unread(tags: Any) -> BadImage:
    if _PHOTOMETRIC not in tags:
        return BadImage("a TIFF that does not say whether 0 is black or white", "Save it as PNG.")
    bits = tags.get(_BITS, (1,))
    ink = _INKS.get(tags.get(_PHOTOMETRIC), f"photometric {tags.get(_PHOTOMETRIC)}")
    number = _NUMBERS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "")
    planes = " in planes" if tags.get(_PLANAR, 1) == 2 else ""
    samples, extra = tags.get(_SAMPLES, 1), len(tags.get(_EXTRA_SAMPLES, ()))
    count = f"{samples} samples" + (f" ({extra} extra)" if extra else "") if samples != 1 else "one sample"
    layout = f"{ink}, {count} of {number}{bits[0]} bits{planes}, compression {tags.get(_COMPRESSION, 1)}"
    return BadImage(f"a TIFF of a layout that is not read here ({layout[:120]})", "Save it as PNG, or TIFF of 8 bits.")
