"""PNG: chunks that have nothing to do with the pixels are left out, and every transparent colour is found.

Pillow refuses a whole image for a profile or a text that unpacks to more than 1 MB, or for a wrong checksum of one; and
it compares a transparent gray or colour of 2, 4 or 16 bits with pixels that it has converted to 8 bits.
"""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_XMP = 1 << 20  # as much as Pillow unpacks of a text; an orientation stands near the beginning


def without_metadata(data: bytes) -> bytes:
    """Returns the PNG with pixels, palette, transparency and orientation alone; nothing else is unpacked or checked.

    Of an animation the still image stays. From the first damage on, the bytes are as they were.
    """
    if not data.startswith(_SIGNATURE):
        return data
    parts, seen, kept_from, place = [], set(), 0, len(_SIGNATURE)
    while place + 12 <= len(data):
        name, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        if not name.isalpha() or end > len(data):
            break
        if name[0] & 32 and name != b"tRNS":  # lower case: not needed for the pixels
            parts.append(data[kept_from:place])
            chunk = b"" if name in seen else _orientation_chunk(name, data[place:end])
            if chunk:
                parts.append(chunk)
                seen.add(name)
            kept_from = end
        place = end
        if name == b"IEND":
            break
    return b"".join((*parts, data[kept_from:])) if parts else data


def _orientation_chunk(name: bytes, chunk: bytes) -> bytes:
    """Returns the chunk if it may hold an orientation, XMP unpacked and cut; empty otherwise."""
    body = chunk[8:-4]
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return b""
    if name == b"eXIf" or (name in (b"tEXt", b"zTXt") and body.startswith(b"Raw profile type exif\0")):
        is_packed = name == b"zTXt"
        return b"" if is_packed and _unpack(body[23:]) is None else chunk
    if name != b"iTXt" or not body.startswith(b"XML:com.adobe.xmp\0"):
        return b""
    keyword, flags, rest = body[:18], body[18:20], body[20:]
    text = rest.split(b"\0", 2)[-1]
    if flags[:1] == b"\1":
        text = _begin_unpacking(text)
    text = text[:_MOST_XMP].decode("utf-8", "ignore").encode()
    named = b"iTXt" + keyword + b"\0\0\0\0" + text
    return (len(named) - 4).to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")


def _unpack(packed: bytes) -> bytes | None:
    """Returns the text; None if it is damaged or larger than Pillow unpacks."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, _MOST_XMP)
    except zlib.error:
        return None
    return None if unpacking.unconsumed_tail else text


def _begin_unpacking(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MOST_XMP)
    except zlib.error:
        return b""


def gray_step(data: bytes) -> int:
    """Returns the factor by which Pillow multiplies the gray values of 2 or 4 bits."""
    return {2: 85, 4: 17}.get(data[24], 1) if data[25] == 0 else 1


def transparent_pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Returns (H, W) bool, True where a pixel has the one colour that is transparent; None if there is no such colour.

    Args:
        image: A loaded PNG, gray or RGB.
        data: Its file.
    """
    key = image.info.get("transparency")
    if image.mode not in ("L", "I;16", "RGB") or key is None:
        return None
    bits = data[24]
    if image.mode != "RGB":
        return np.asarray(image) == (key & (1 << bits) - 1) * gray_step(data)
    values = np.asarray(image).astype(np.uint16)
    if bits == 16:
        values = values << 8 | _low_bytes(data)
    return (values == np.array([part & (1 << bits) - 1 for part in key], np.uint16)).all(axis=2)


def _low_bytes(data: bytes) -> np.ndarray:
    """Returns the second byte of each 16-bit value, (H, W, 3) uint8; Pillow gives the first."""
    image = Image.open(BytesIO(without_metadata(data)), formats=("PNG",))
    image.tile = [image.tile[0]._replace(args="RGB;16L")]
    image.load()
    return np.asarray(image)
