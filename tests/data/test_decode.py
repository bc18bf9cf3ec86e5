"""decode: every mode by hand-computed pixels, every orientation, and damage of every kind as BadImage."""

from __future__ import annotations

import re
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beitcli.data import decode as decoding
from beitcli.data.decode import MAX_PIXELS, decode_index_mask, decode_pixels, decode_rgb, read_upright_size
from beitcli.errors import BadImage, ReadFailed


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *late: bytes, early: bytes = b"") -> bytes:
    """A PNG made by hand, for kinds that Pillow does not write; `rows` with a filter byte each."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = early + chunk(b"IDAT", zlib.compress(rows)) + b"".join(late)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def photograph(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    knots = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC)


def pixels(data: bytes) -> list[list[int]]:
    """The first row as [r, g, b]."""
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)[0].tolist()


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode_rgb(data)
    return caught.value.message


def test_rgb_png_keeps_its_pixels() -> None:
    image = photograph()
    assert np.array_equal(np.asarray(decode_rgb(encode(image))), np.asarray(image))


def test_gray_becomes_three_equal_channels() -> None:
    assert pixels(encode(Image.fromarray(np.array([[0, 7, 255]], np.uint8)))) == [[0] * 3, [7] * 3, [255] * 3]


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert pixels(encode(image)) == [[255] * 3, [0] * 3]


def test_gray_with_alpha_is_composited_over_white() -> None:
    image = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)])
    assert pixels(encode(image)) == [[204, 204, 204]]  # 255 * (1 - 51 / 255)


def test_rgba_is_composited_over_white() -> None:
    image = Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [255, 0, 0, 51]]], np.uint8), "RGBA")
    assert pixels(encode(image)) == [[10, 20, 30], [255, 255, 255], [255, 204, 204]]


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image


def test_palette_is_looked_up() -> None:
    assert pixels(encode(palette_image())) == [[200, 0, 0], [0, 200, 0], [0, 0, 200]]


def test_palette_transparency_by_index_is_white() -> None:
    expected = [[200, 0, 0], [255, 255, 255], [0, 0, 200]]
    assert pixels(encode(palette_image(), transparency=1)) == expected
    assert pixels(encode(palette_image(), "GIF", transparency=1)) == expected


def test_palette_transparency_by_table_is_composited() -> None:
    assert pixels(encode(palette_image(), transparency=bytes([255, 0, 51]))) == [
        [200, 0, 0],
        [255, 255, 255],
        [204, 204, 244],  # 0.8 * 255, 0.8 * 255, 0.8 * 255 + 0.2 * 200
    ]


def test_rgb_colour_key_is_white() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encode(image, transparency=(1, 2, 3))) == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize("invert", [False, True])
def test_cmyk_tiff_and_adobe_inverted_jpeg_become_rgb(invert: bool) -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan, no black
    data = encode(cmyk, "JPEG", quality=100) if invert else encode(cmyk, "TIFF")
    assert not invert or b"Adobe" in data
    assert np.abs(np.asarray(decode_rgb(data)).astype(int) - [0, 255, 255]).max() <= 2


def test_16_bit_gray_is_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 256, 257, 32896, 65407, 65535]], np.uint16)
    expected = [[v] * 3 for v in (0, 0, 1, 1, 1, 128, 255, 255)]
    assert pixels(encode(Image.fromarray(values))) == expected
    assert pixels(encode(Image.fromarray(values), "TIFF")) == expected
    assert pixels(encode(Image.fromarray(values.astype(np.int32)), "TIFF")) == expected


def test_32_bit_gray_is_stretched() -> None:
    values = np.array([[-1000, 0, 1000]], np.int32)
    assert pixels(encode(Image.fromarray(values), "TIFF")) == [[0] * 3, [127] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.4, 1.0], [0, 102, 255]),
        ([0.0, 99.6, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 4.0], [0, 51, 255]),
        ([float("nan"), 1.0, 0.2], [0, 255, 51]),
        ([700.0, 700.0, 700.0], [0, 0, 0]),
    ],
)
def test_float_tiff_is_scaled_by_its_range(values: list[float], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert pixels(data) == [[v] * 3 for v in expected]


def test_16_bit_rgb_png_keeps_the_high_bytes() -> None:
    row = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1200, 0x3400, 0x5600)
    assert pixels(png(2, 1, 16, 2, row)) == [[0, 0x80, 0xFF], [0x12, 0x34, 0x56]]


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "PNG", "TIFF"):
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert pixels(data)[0] == [255, 0, 0]


# Where the corner "0" of the stored pixels [[0, 1], [2, 3], [4, 5]] goes, by the EXIF specification.
TURNED = {
    1: [[0, 1], [2, 3], [4, 5]],
    2: [[1, 0], [3, 2], [5, 4]],
    3: [[5, 4], [3, 2], [1, 0]],
    4: [[4, 5], [2, 3], [0, 1]],
    5: [[0, 2, 4], [1, 3, 5]],
    6: [[4, 2, 0], [5, 3, 1]],
    7: [[5, 3, 1], [4, 2, 0]],
    8: [[1, 3, 5], [0, 2, 4]],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_made_upright(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array(TURNED[1], np.uint8).repeat(16, 0).repeat(16, 1) * 40).convert("RGB")
    data = encode(stored, file_format, exif=exif)
    upright = decode_rgb(data)
    seen = np.asarray(upright)[8::16, 8::16, 0] / 40
    assert np.rint(seen).astype(int).tolist() == TURNED[orientation]
    assert read_upright_size(data) == upright.size
    assert upright.getexif().get(0x0112) is None


def test_exif_behind_the_pixels_counts_in_both() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(2, 1, 8, 0, b"\0\1\2", chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert decode_rgb(data).size == read_upright_size(data) == (1, 2)


def test_damaged_exif_keeps_the_pixels() -> None:
    data = encode(photograph(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert decode_rgb(data).size == read_upright_size(data) == (40, 24)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file (0 bytes)"),
        (b"This is no photograph.\n", "not an image (it begins like text)"),
        (b"\n <!DOCTYPE html><html>404</html>", "not an image (it begins like HTML)"),
        (b"<HTML><body>", "not an image (it begins like HTML)"),
        (b"<?xml version='1.0'?><svg/>", "not an image (it begins like XML)"),
        (b"version https://git-lfs.github.com/spec/v1", "not an image (it begins like a Git LFS pointer)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image (it begins like PostScript)"),
        (bytes(512), "not an image (all of its 512 bytes are zero)"),
        (bytes(20_000), "not an image (all of its 20,000 bytes are zero)"),
        (b"\xff\xd8\xff", "damaged: it begins like JPEG, but its header cannot be read"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    with pytest.raises(BadImage, match=re.escape(expected)):
        read_upright_size(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_half_a_file_is_truncated(file_format: str) -> None:
    data = encode(photograph(size=(400, 300)), file_format)
    half = data[: len(data) // 2]
    said = reason(half)
    assert said == f"truncated: its {len(half):,} bytes end before its pixels do"


def test_forged_bomb_is_refused_from_the_header() -> None:
    data = png(30000, 30000, 8, 2, b"")
    decode_rgb(encode(photograph()))  # Pillow's plugins are loaded
    start = time.perf_counter()
    for decode in (decode_rgb, read_upright_size, decode_index_mask):
        with pytest.raises(BadImage, match=r"^900\.0 megapixels, more than the 178\.9 allowed$"):
            decode(data)
    assert time.perf_counter() - start < 0.5


def test_real_bomb_is_refused_without_decoding() -> None:
    side, packer = 14000, zlib.compressobj(1)  # 196 megapixels of one bit: 25 MB that pack into 0.1 MB
    packed = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert reason(data) == "196.0 megapixels, more than the 178.9 allowed"


def test_limit_holds_where_pillow_was_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert MAX_PIXELS < 13378 * 13378
    assert reason(png(13378, 13378, 8, 2, b"")).startswith("179.0 megapixels")


def test_large_image_below_the_limit_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert decode_rgb(encode(photograph())).size == (40, 24)  # 960 pixels: Pillow warns, and refuses above 1200


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_mutated_bytes_raise_nothing_but_bad_image(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.data.decode.MAX_PIXELS", 4_000_000)  # mutated sizes below the real limit take seconds
    original = encode(photograph(), file_format)
    rng = np.random.default_rng(len(file_format))
    reasons = []
    for _ in range(200):
        data = np.frombuffer(original, np.uint8).copy()
        places = rng.integers(0, len(data) if rng.random() < 0.5 else min(120, len(data)), rng.integers(1, 9))
        data[places] = rng.integers(0, 256, len(places))
        for decode in (decode_rgb, read_upright_size, decode_index_mask):
            try:
                decode(data.tobytes()[: len(data) if rng.random() < 0.9 else rng.integers(len(data))])
            except BadImage as error:
                reasons.append(error.message)
    assert len(reasons) > 20
    assert all(0 < len(said) < 200 and "\n" not in said for said in reasons)


def test_warnings_work_again_after_threads_decoded() -> None:
    data, filters = encode(photograph(), "JPEG"), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_rgb(data) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == filters


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_index_mask_is_read_as_stored(mode: str) -> None:
    indices = np.array([[0, 1, 150], [255, 2, 3]], np.uint8)
    image = Image.fromarray(indices.astype(np.uint16) if mode == "I;16" else indices)
    if mode == "P":
        image = Image.fromarray(indices, "P")
        image.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    assert image.mode == mode
    decoded = decode_index_mask(encode(image))
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == indices.tolist()


def test_one_bit_mask_is_zero_and_one() -> None:
    assert decode_index_mask(encode(Image.fromarray(np.array([[True, False]])))).tolist() == [[1, 0]]


@pytest.mark.parametrize(("depth", "row", "expected"), [(2, 0b00_01_10_11, [0, 1, 2, 3]), (4, 0x0F, [0, 15])])
def test_masks_of_few_bits_keep_their_indices(depth: int, row: int, expected: list[int]) -> None:
    assert decode_index_mask(png(len(expected), 1, depth, 0, bytes([0, row]))).tolist() == [expected]


def test_mask_in_colour_or_jpeg_or_beyond_255_is_refused() -> None:
    with pytest.raises(BadImage, match="mode RGB"):
        decode_index_mask(encode(photograph()))
    with pytest.raises(BadImage, match="JPEG as mask"):
        decode_index_mask(encode(Image.new("L", (8, 8)), "JPEG"))
    with pytest.raises(BadImage, match="class index 256 in a mask"):
        decode_index_mask(encode(Image.fromarray(np.array([[0, 256]], np.uint16))))


# Pixels


def outcome(decode: Callable[[bytes], object], data: bytes) -> tuple[object, ...]:
    """The shape and the bytes of the pixels, or why there are none."""
    try:
        pixels = np.asarray(decode(data))
    except BadImage as error:
        return (error.message,)
    assert pixels.dtype == np.uint8
    return pixels.shape, pixels.tobytes()


def jpegs() -> list[bytes]:
    """Of every kind that matters here: subsampling, progressive, restart markers, gray, CMYK, RGB, turned, tiny."""
    image, turned = photograph(size=(53, 37)), Image.Exif()
    turned[0x0112] = 6
    options: list[dict[str, object]] = [
        {}, {"quality": 100, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_blocks": 2},
        {"keep_rgb": True}, {"exif": turned}, {"optimize": True, "quality": 5},
    ]  # fmt: skip
    kinds = [encode(image, "JPEG", **option) for option in options]
    return [
        *kinds,
        *(encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")),
        encode(photograph(size=(1, 1)), "JPEG"),
    ]


@pytest.mark.parametrize("number", range(11))
def test_decode_pixels_is_decode_rgb(number: int) -> None:
    data = jpegs()[number]
    assert len(outcome(decode_rgb, data)) == 2
    for whole in (data, data + b"\0", data[:-2], data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        assert outcome(decode_pixels, whole) == outcome(decode_rgb, whole)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_decode_pixels_of_other_formats_is_decode_rgb(file_format: str) -> None:
    data = encode(photograph(), file_format)
    assert outcome(decode_pixels, data) == outcome(decode_rgb, data)
    assert decode_pixels(data).flags.writeable


def test_plain_jpeg_alone_goes_the_fast_way() -> None:
    fast = [decoding._decode_plain_jpeg(data) is not None for data in jpegs()]
    assert fast == [True] * 6 + [False, True, False, False, True]  # all but turned, gray and CMYK
    assert decoding._decode_plain_jpeg(jpegs()[0][:-1]) is None


def test_without_torchvisions_decoder_pillows_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [outcome(decode_pixels, data) for data in jpegs()]
    monkeypatch.setattr(decoding, "_jpeg_decoder", lambda: None)
    assert [outcome(decode_pixels, data) for data in jpegs()] == expected


@settings(deadline=None, max_examples=300)
@given(
    number=st.integers(0, 10),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    kept=st.floats(0, 1) | st.just(1.0),
    ends=st.booleans(),
)
def test_damage_changes_decode_pixels_as_it_does_decode_rgb(
    number: int, edits: list[tuple[float, int]], kept: float, ends: bool
) -> None:
    data = bytearray(jpegs()[number])
    for place, value in edits:
        data[min(len(data) - 1, int(place * len(data)))] = value
    damaged = bytes(data[: int(kept * len(data))]) + (b"\xff\xd9" if ends else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "MAX_PIXELS", 4_000_000)  # sizes below the real limit take seconds
        assert outcome(decode_pixels, damaged) == outcome(decode_rgb, damaged)


def test_a_bomb_is_refused_by_decode_pixels_too() -> None:
    data = bytearray(encode(photograph(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    assert outcome(decode_pixels, bytes(data)) == ("3600.0 megapixels, more than the 178.9 allowed",)


def test_memory_that_ends_is_no_fault_of_the_image() -> None:
    with pytest.raises(ReadFailed, match="too large for the memory"), decoding.pillow_contained(b""):
        raise MemoryError
