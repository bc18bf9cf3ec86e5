"""Profiles, texts and headers that are large, damaged or bombs: the pixels are those of the file without them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decode import decode_index_mask, decode_pixels, decode_rgb, read_upright_size
from tests.data.test_decode import chunk, encode, photograph

PLAIN = encode(photograph())
EXIF = b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x112, 3, 1, 6, 0) + bytes(4)  # orientation 6
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
LARGE, BOMB = zlib.compress(bytes(2_000_000)), zlib.compress(bytes(100_000_000))


def unchecked(name: bytes, body: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return chunk(name, body)[:-4] + b"\1\2\3\4"


def decoded(data: bytes) -> np.ndarray:
    pixels = decode_pixels(data)
    assert np.array_equal(pixels, np.asarray(decode_rgb(data)))
    assert read_upright_size(data) == (pixels.shape[1], pixels.shape[0])
    return pixels


EXIF_AS_TEXT = b"\nexif\n36\n" + (b"Exif\0\0" + EXIF).hex().encode()
NEEDLESS = {
    "large profile": chunk(b"iCCP", b"p\0\0" + LARGE),
    "large text": chunk(b"zTXt", b"k\0\0" + LARGE),
    "large international text": chunk(b"iTXt", b"k\0\1\0\0\0" + LARGE),
    "profile packed in another way": chunk(b"iCCP", b"p\0\7?"),
    "text packed in another way": chunk(b"zTXt", b"k\0\7?"),
    "text with a wrong checksum": unchecked(b"tEXt", b"k\0v"),
    "EXIF with a wrong checksum": unchecked(b"eXIf", EXIF),
    "private with a wrong checksum": unchecked(b"prVt", b"?"),
    "gamma cut": chunk(b"gAMA", b"\0"),
    "colours of the primaries cut": chunk(b"cHRM", b""),
    "resolution cut": chunk(b"pHYs", b"\0"),
    "animation without its first frame": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">5I2HBB", 7, 40, 24, 0, 0, 1, 1, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("needless", NEEDLESS.values(), ids=list(NEEDLESS))
def test_png_with_needless_chunks_is_the_plain_one(needless: bytes) -> None:
    early, late = PLAIN[:33] + needless + PLAIN[33:], PLAIN[:-12] + needless + PLAIN[-12:]
    for data in (early, late):
        assert np.array_equal(decoded(data), np.asarray(photograph()))


def test_mask_with_a_large_profile_is_the_plain_one() -> None:
    plain = encode(Image.fromarray(np.array([[0, 1, 2]], np.uint8)))
    assert decode_index_mask(plain[:33] + NEEDLESS["large profile"] + plain[33:]).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"iCCP", b"p\0\0" + BOMB),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB) * 40,
    ],
)  # fmt: skip
def test_bomb_in_a_png_is_not_unpacked(bomb: bytes) -> None:
    data = PLAIN[:33] + bomb + PLAIN[33:]
    decoded(PLAIN)  # what is imported once
    tracemalloc.start()
    try:
        assert np.array_equal(decoded(data), np.asarray(photograph()))
        assert tracemalloc.get_traced_memory()[1] < 12_000_000 + 4 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "orientation",
    [
        chunk(b"eXIf", EXIF),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF_AS_TEXT)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0word\0" + zlib.compress(XMP)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + b" " * 2_000_000)),
    ],
    ids=["EXIF", "EXIF as text", "XMP", "packed XMP", "large XMP"],
)  # fmt: skip
def test_orientation_of_a_png_outlives_what_is_left_out(orientation: bytes) -> None:
    expected = np.rot90(np.asarray(photograph()), 3)
    for chunks in (orientation, NEEDLESS["large profile"] + orientation, orientation + NEEDLESS["large text"]):
        assert np.array_equal(decoded(PLAIN[:33] + chunks + PLAIN[33:]), expected)
        assert np.array_equal(decoded(PLAIN[:-12] + chunks + PLAIN[-12:]), expected)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    "broken",
    [
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE1, b"Exif\0\0??"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"MPF\0II*\0????"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3"),
        segment(0xEE, b"Adobe"),
        segment(0xFE, b"\xff\xfe"),
    ],
)
def test_jpeg_with_a_broken_header_is_the_plain_one(broken: bytes) -> None:
    plain = encode(photograph(), "JPEG")
    for data in (plain[:2] + broken + plain[2:], plain[:20] + broken + plain[20:]):
        assert np.array_equal(decoded(data), decode_pixels(plain))


def test_broken_header_of_a_jpeg_hides_neither_orientation_nor_colours() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for image in (photograph(), photograph().convert("CMYK")):
        plain = encode(image, "JPEG", exif=turned)
        assert np.array_equal(decoded(plain[:2] + segment(0xE2, b"ICC_PROFILE\0") + plain[2:]), decoded(plain))
        assert decoded(plain).shape == (40, 24, 3)


@pytest.mark.parametrize("profile", [b"?", np.random.default_rng(0).bytes(1_500_000)], ids=["broken", "large"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_profile_changes_no_pixels(file_format: str, profile: bytes) -> None:
    plain, profiled = (encode(photograph(), file_format, **more) for more in ({}, {"icc_profile": profile}))
    assert np.array_equal(decoded(profiled), decoded(plain))


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_outside_1_to_8_turns_nothing(file_format: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(
        decoded(encode(photograph(), file_format, exif=exif)), decoded(encode(photograph(), file_format))
    )
