"""Masks: the numbers that a file stores are the classes, whatever holds them; what may change them is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decode import decode_index_mask, decode_rgb
from beitcli.errors import BadImage
from tests.data.test_decode import encode


def pgm(values: np.ndarray, largest: int, plain: bool) -> bytes:
    header = f"P{2 if plain else 5}\n# a comment\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    if plain:
        return header + b"# another\n" + "\n".join(" ".join(map(str, row)) for row in values.tolist()).encode()
    return header + values.astype(">u2" if largest > 255 else np.uint8).tobytes()


@pytest.mark.parametrize("plain", [False, True], ids=["P5", "P2"])
@pytest.mark.parametrize("largest", [1, 2, 3, 15, 100, 254, 255, 256, 1000, 65535])
def test_pgm_mask_is_the_stored_numbers(largest: int, plain: bool) -> None:
    classes = np.random.default_rng(largest).integers(0, min(largest, 254) + 1, (7, 9))
    assert np.array_equal(decode_index_mask(pgm(classes, largest, plain)), classes)


def test_pgm_as_a_picture_is_stretched() -> None:
    values = np.array([[0, 1, 2]])
    for plain in (False, True):
        assert np.asarray(decode_rgb(pgm(values, 2, plain)))[0, :, 0].tolist() == [0, 128, 255]


def test_ignored_class_above_the_largest_value_stays() -> None:
    assert decode_index_mask(pgm(np.array([[0, 2, 255]]), 2, False)).tolist() == [[0, 2, 255]]


def test_pgm_mask_outside_the_classes_or_cut_is_refused() -> None:
    with pytest.raises(BadImage, match="class index 256 in a mask"):
        decode_index_mask(pgm(np.array([[0, 256]]), 1000, False))
    for plain, cut in ((False, 2), (True, 3)):
        data = pgm(np.full((4, 4), 7), 9, plain)[:-cut]
        with pytest.raises(BadImage, match="truncated"):
            decode_index_mask(data)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_mask_is_the_indices_whatever_the_colours(file_format: str) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    for colours in ([200, 0, 0] * 3, [0, 0, 0, 1, 1, 1, 2, 2, 2], [255, 255, 255, 0, 0, 0, 9, 9, 9]):
        image = Image.fromarray(indices, "P")
        image.putpalette(colours)
        assert np.array_equal(decode_index_mask(encode(image, file_format)), indices)


@pytest.mark.parametrize("data", [b"P4\n3 2\n\xa0\x40", b"P1\n3 2\n1 0 1\n0 1 0\n", b"P1\n# c 1\n3 2\n101010"])
def test_pbm_mask_is_the_stored_bits(data: bytes) -> None:
    assert decode_index_mask(data).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_pbm_mask_that_is_cut_short_is_refused() -> None:
    with pytest.raises(BadImage):
        decode_index_mask(b"P4\n3 2\n\xa0")


def test_mask_in_a_compression_that_changes_pixels_is_refused() -> None:
    mask = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
    with pytest.raises(BadImage, match="a JPEG 2000 as mask"):
        decode_index_mask(encode(mask, "JPEG2000", irreversible=True))
    assert np.array_equal(decode_index_mask(encode(mask, "JPEG2000")), np.asarray(mask))
