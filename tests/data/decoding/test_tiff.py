"""TIFF layouts written by hand, decoded to the values that they state, or refused by name."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decode import decode_index_mask, decode_pixels, decode_rgb, read_upright_size
from beitcli.errors import BadImage

Tags = dict[int, int | list[int]]
WIDTH, HEIGHT = 6, 4


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of whole bytes, as TIFF packs samples."""
    if bits >= 8 and bits != 12:
        return values.astype(f"{order}{values.dtype.kind}{bits // 8}").tobytes()
    rows = (f"{int(''.join(f'{v:0{bits}b}' for v in row), 2):b}".zfill(len(row) * bits) for row in values)
    return b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes((len(row) + 7) // 8, "big") for row in rows)


def tiff(values: np.ndarray, bits: int, photometric: int | None, order: str = "<", **more: object) -> bytes:
    """A file of one strip; `more`: `tags` beside or instead of the usual, `body`, `big` for BigTIFF, `packs`."""
    samples = values.shape[2] if values.ndim == 3 else 1
    body = more.get("body") or packed(values.reshape(len(values), -1), bits, order)
    assert isinstance(body, bytes)
    if more.get("packs"):
        body = zlib.compress(body)
    start, word = (16, "Q") if more.get("big") else (8, "I")
    tags: Tags = {256: WIDTH, 257: HEIGHT, 258: [bits] * samples, 259: 8 if more.get("packs") else 1, 273: start}
    tags |= {277: samples, 278: HEIGHT, 279: len(body)}
    tags |= {339: {"i": 2, "f": 3}.get(values.dtype.kind, 1)}
    if photometric is not None:
        tags[262] = photometric
    tags |= more.get("tags") or {}  # type: ignore[operator]
    entries, late = [], b""
    for tag, value in sorted(tags.items()):
        kind = 4 if tag in (256, 257, 273, 278, 279) else 3
        numbers = value if isinstance(value, list) else [value]
        written = struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers)
        if len(written) > struct.calcsize(word):
            late, written = late + written, struct.pack(order + word, start + len(body) + len(late))
        entries.append(
            struct.pack(order + "HH" + word, tag, kind, len(numbers)) + written.ljust(struct.calcsize(word), b"\0")
        )
    directory = start + len(body) + len(late)
    header = struct.pack(
        order + ("HHHQ" if more.get("big") else "HI"), *((43, 8, 0) if more.get("big") else (42,)), directory
    )
    count = struct.pack(order + ("Q" if more.get("big") else "H"), len(entries))
    return (b"II" if order == "<" else b"MM") + header + body + late + count + b"".join(entries) + bytes(8)


def ramp(bits: int) -> np.ndarray:
    """0 and the largest number and what lies between, (4, 6)."""
    return np.linspace(0, 2**bits - 1, WIDTH * HEIGHT).astype(np.uint32).reshape(HEIGHT, WIDTH)


def zeros(samples: int) -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH, samples), np.uint8)


def decoded(data: bytes) -> np.ndarray:
    """(H, W, 3) float of `decode_rgb`; `decode_pixels` and `read_upright_size` agree."""
    pixels = np.asarray(decode_rgb(data))
    assert np.array_equal(decode_pixels(data), pixels)
    assert read_upright_size(data) == (pixels.shape[1], pixels.shape[0])
    return pixels.astype(float)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, float)[..., None], 3, axis=2)


def reason(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode_rgb(data)
    return caught.value.message


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_white_is_zero_is_black_is_zero_turned_round(bits: int, order: str) -> None:
    values = ramp(bits)
    black, white = (decoded(tiff(values, bits, photometric, order)) for photometric in (1, 0))
    assert np.abs(black - gray(values * 255 / (2**bits - 1))).max() <= 0.5
    assert np.array_equal(white, 255 - black)


def test_white_is_zero_in_bigtiff_and_compressed() -> None:
    values = ramp(16)
    expected = decoded(tiff(values, 16, 0))
    assert np.array_equal(decoded(tiff(values, 16, 0, big=True)), expected)
    for order in "<>":
        assert np.array_equal(decoded(tiff(values, 16, 0, order, packs=True)), expected)


def test_white_is_zero_of_floats_and_of_gray_with_alpha() -> None:
    values = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    assert np.abs(decoded(tiff(values, 32, 0)) - gray(255 - 255 * values)).max() <= 0.5
    both = np.stack([ramp(8), ramp(8)[::-1]], axis=2)
    alpha = both[..., 1] / 255
    expected = (255 - both[..., 0]) * alpha + 255 * (1 - alpha)
    assert np.abs(decoded(tiff(both, 8, 0, tags={338: 2})) - gray(expected)).max() <= 1


def test_12_bits_reach_white() -> None:
    values = ramp(12)
    assert np.abs(decoded(tiff(values, 12, 1)) - gray(values * 255 / 4095)).max() <= 0.5
    assert np.abs(decoded(tiff(values, 12, 0)) - gray(255 - values * 255 / 4095)).max() <= 0.5


def test_signed_bytes_are_stretched_where_negative() -> None:
    values = np.arange(-12, 12).reshape(HEIGHT, WIDTH)
    assert np.abs(decoded(tiff(values, 8, 1)) - gray((values + 12) * 255 / 23)).max() <= 1
    assert np.array_equal(decoded(tiff(values + 12, 8, 1)), gray(values + 12))


def test_unsigned_32_bits_beyond_the_signed_are_light() -> None:
    assert np.abs(decoded(tiff(ramp(32), 32, 1)) - gray(ramp(32) / (2**32 - 1) * 255)).max() <= 1


@pytest.mark.parametrize(("kind", "bits"), [("i", 16), ("i", 32), ("f", 32)])
def test_byte_order_changes_no_compressed_numbers(kind: str, bits: int) -> None:
    values = np.arange(-9, 15).reshape(HEIGHT, WIDTH).astype(f"{kind}{bits // 8}") * 100
    files = [tiff(values, bits, 1, order, packs=packs) for order in "<>" for packs in (False, True)]
    for data in files:
        assert np.abs(decoded(data) - gray((values.astype(float) + 900) * 255 / 2300)).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_in_planes(order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    planes = b"".join(packed(values[..., band], 16, order) for band in range(3))
    size = len(planes) // 3
    tags = {284: 2, 273: [8 + band * size for band in range(3)], 279: [size] * 3}
    assert np.array_equal(decoded(tiff(values, 16, 2, order, body=planes, tags=tags)), values >> 8)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_one_sample_said_to_be_in_planes(bits: int) -> None:
    values = ramp(bits)
    assert np.array_equal(decoded(tiff(values, bits, 1, tags={284: 2})), decoded(tiff(values, bits, 1)))


def test_gray_times_alpha_lies_over_white() -> None:
    alpha = ramp(8)
    values = np.stack([alpha // 2, alpha], axis=2)
    assert np.array_equal(decoded(tiff(values, 8, 1, tags={338: 1})), gray(alpha // 2 + 255 - alpha))


def test_palette_of_8_bit_colours_is_no_black_one() -> None:
    colours = np.random.default_rng(1).integers(0, 256, (3, 256))
    indices = ramp(8)
    for scale in (1, 257):
        data = tiff(indices, 8, 3, tags={320: (colours * scale).ravel().tolist()})
        assert np.array_equal(decoded(data), colours.T[indices])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(ramp(16), 64, 1, body=bytes(192)), "gray, one sample of 64 bits, compression 1"),
        (tiff(ramp(16).astype("f4"), 16, 1, body=bytes(48)), "gray, one sample of floating-point 16 bits"),
        (tiff(zeros(5), 16, 1, tags={338: [0] * 4}), "gray, 5 samples (4 extra) of 16 bits"),
        (tiff(zeros(3), 8, 6, tags={530: [2, 2]}), "YCbCr, 3 samples of 8 bits"),
        (tiff(zeros(2), 8, 1, tags={338: 2, 284: 2}), "2 samples (1 extra) of 8 bits in planes"),
        (tiff(zeros(2), 8, 0, tags={338: 1}), "gray, 2 samples (1 extra) of 8 bits"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused_by_name(data: bytes, expected: str) -> None:
    said = reason(data)
    assert said.startswith("a TIFF of a layout that is not read here (")
    assert expected in said


def test_unsaid_zero_and_big_endian_bigtiff_are_refused_by_name() -> None:
    for bits in (8, 12, 16):
        assert reason(tiff(ramp(bits), bits, None)) == "a TIFF that does not say whether 0 is black or white"
    assert reason(tiff(ramp(8), 8, 1, ">", big=True)) == "a big-endian BigTIFF, which is not read here"


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_mask_is_the_stored_numbers(bits: int) -> None:
    indices = np.minimum(ramp(bits), 200)
    for photometric in (1, 0):
        assert np.array_equal(decode_index_mask(tiff(indices, bits, photometric)), indices)


def test_mask_in_a_palette_is_the_indices() -> None:
    for bits in (1, 2, 4, 8):
        colours = [60000 - index * 7 for index in range(3 << bits)]
        assert np.array_equal(decode_index_mask(tiff(ramp(bits), bits, 3, tags={320: colours})), ramp(bits))


def test_mask_that_may_mean_something_else_is_refused() -> None:
    with pytest.raises(BadImage, match="class index -1 in a mask"):
        decode_index_mask(tiff(np.full((HEIGHT, WIDTH), -1), 8, 1))
    file = BytesIO()
    Image.new("L", (16, 16), 3).save(file, "TIFF", compression="jpeg")
    with pytest.raises(BadImage, match="a JPEG as mask"):
        decode_index_mask(file.getvalue())
