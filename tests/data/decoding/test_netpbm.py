"""A plain PPM is its pixels: a view of the file with the values that Pillow reads; any other PPM is left to Pillow."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from beitcli.data import decode
from beitcli.data.decode import decode_pixels, decode_rgb
from beitcli.data.decoding.netpbm import plain_pixels, plain_ppm
from beitcli.errors import BadImage

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)


def test_a_plain_ppm_is_read_as_pillow_reads_it_and_without_a_copy():
    data = plain_ppm(PIXELS)
    saved = BytesIO()
    Image.fromarray(PIXELS).save(saved, "PPM")
    assert data == saved.getvalue()
    view = plain_pixels(data, 100)
    assert view is not None
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))
    assert not view.flags.writeable
    for pixels in (view, decode_pixels(data), np.array(decode_rgb(data)), np.array(Image.open(BytesIO(data)))):
        assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    "header",
    [b"P6 5 7 255\n", b"P6\n# a comment\n5 7\n255\n", b"P6\n5 7\n255 ", b"P6\n5\n7\n255\n"],
    ids=["spaces", "comment", "last space", "lines"],
)
def test_other_headers_of_a_ppm_are_left_to_pillow_with_the_same_pixels(header: bytes):
    data = header + PIXELS.tobytes()
    assert plain_pixels(data, 100) is None
    assert np.array_equal(decode_pixels(data), PIXELS)


@pytest.mark.parametrize("largest", [127, 65535])
def test_a_ppm_of_another_largest_value_is_left_to_pillow(largest: int):
    raster = (PIXELS // 2).tobytes() if largest < 256 else PIXELS.astype(">u2").tobytes()
    data = b"P6\n5 7\n%d\n" % largest + raster
    assert plain_pixels(data, 100) is None
    assert np.array_equal(decode_pixels(data), np.array(Image.open(BytesIO(data)).convert("RGB")))


def test_a_truncated_ppm_is_bad_and_bytes_behind_the_pixels_are_none():
    data = plain_ppm(PIXELS)
    for read in (decode_pixels, decode_rgb):
        with pytest.raises(BadImage, match="truncated"):
            read(data[:-1])
    assert np.array_equal(decode_pixels(data + b"more"), PIXELS)


def test_a_ppm_of_too_many_pixels_is_refused_as_any_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 34)
    with pytest.raises(BadImage, match="megapixels"):
        decode_pixels(plain_ppm(PIXELS))
    assert plain_pixels(b"P6\n999999999 999999999\n255\n", decode.MAX_PIXELS) is None
