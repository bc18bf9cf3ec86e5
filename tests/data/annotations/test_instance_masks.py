"""Outlines: runs of pixels read as pycocotools reads them, polygons filled by its rule, and what is neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.mask import encode

from beitcli.data.annotations.instance_masks import Bitmap, Polygons, Runs, area_of, decoded, encoded, outline_of
from beitcli.errors import BadImage
from tests.helpers.forked import forked

SIZE = (5, 7)
WHOLE = (0, 0, 7, 5)


def mask_of(outline: Any) -> np.ndarray:
    return outline.mask(SIZE, SIZE, WHOLE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=35, max_size=35))
def test_runs_are_read_as_they_were_written(pixels):
    mask = np.array(pixels).reshape(SIZE)
    written = encode(np.asfortranarray(mask, np.uint8))
    read = outline_of({"size": list(SIZE), "counts": written["counts"].decode()}, SIZE, 1)
    np.testing.assert_array_equal(mask_of(read), mask)
    np.testing.assert_array_equal(decoded(read.runs(SIZE)), mask)
    lengths, last = [], False
    for pixel in [*mask.T.ravel().tolist(), None]:
        if not lengths or pixel != last:
            lengths += [0] if lengths or not pixel else [0, 0]
        lengths[-1] += pixel is not None
        last = pixel
    plain = outline_of({"size": list(SIZE), "counts": lengths}, SIZE, 1)
    np.testing.assert_array_equal(mask_of(plain), mask)


def test_long_runs_are_read_too():
    mask = np.zeros((300, 400), bool)
    mask[:, 150:390] = True
    mask[7, 3] = True
    written = {"size": [300, 400], "counts": encoded(mask)["counts"].decode()}
    read = outline_of(written, (300, 400), 1)
    assert isinstance(read, Runs)
    np.testing.assert_array_equal(read.whole((300, 400)), mask)
    assert area_of(read.runs((300, 400))) == mask.sum()


def test_polygons_fill_the_pixels_inside_and_are_united():
    outline = outline_of([[1, 1, 4, 1, 4, 3, 1, 3], [5, 0, 7, 0, 7, 5, 5, 5]], SIZE, 1)
    expected = np.zeros(SIZE, bool)
    expected[1:3, 1:4] = expected[:, 5:7] = True
    assert isinstance(outline, Polygons)
    np.testing.assert_array_equal(mask_of(outline), expected)
    np.testing.assert_array_equal(decoded(outline.runs(SIZE)), expected)
    doubled = outline.mask(SIZE, (10, 14), (2, 0, 14, 10))
    np.testing.assert_array_equal(doubled, expected.repeat(2, 0).repeat(2, 1)[:, 2:])
    as_bitmap = Bitmap.of(expected).mask(SIZE, (10, 14), (2, 0, 14, 10))
    np.testing.assert_array_equal(as_bitmap, doubled)


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (None, "it has no segmentation"),
        ([], "it has no segmentation"),
        ("polygon", "is no list of polygons"),
        ([[1, 1, 4, 1]], "of three points and more"),
        ([[1, 1, 4, 1, 4, 3, 1]], "of three points and more"),
        ([[1, 1, 4, 1, 4, "3"]], "of three points and more"),
        ([[1, 1, 4, 1, 4, True]], "of three points and more"),
        ([7], "of three points and more"),
        ([[1, 1, 4, 1, 4, 30]], "reaches beyond the image of 7 x 5 pixels"),
        ([[1, 1, 4, 1, 4, float("nan")]], "of three points and more"),
        ([[1, 1, 4, 1, 4, 10**400]], "of three points and more"),
        ({"size": [5, 7], "counts": [10**400]}, "holds no runs"),
        ([[-5, 1, 4, 1, 4, 3]], "reaches beyond"),
        ({"size": [7, 5], "counts": [35]}, "of another size than the image"),
        ({"size": [5, 7], "counts": [30]}, "runs of 30 pixels, the image 35"),
        ({"size": [5, 7], "counts": [40, -5]}, "holds no runs"),
        ({"size": [5, 7], "counts": [34.5, 0.5]}, "holds no runs"),
        ({"size": [5, 7], "counts": [True, 34.0]}, "holds no runs"),
        ({"size": [5, 7]}, "holds no runs"),
        ({"size": [5, 7], "counts": "\u00e9"}, "holds no runs"),
        ({"size": [5, 7], "counts": "PPPPPPPPPPP0"}, "holds no runs"),
        ({"size": [5, 7], "counts": "S"}, "holds no runs"),
    ],
)
def test_what_is_no_outline_makes_a_bad_image(segmentation, said):
    with pytest.raises(BadImage, match=said):
        outline_of(segmentation, SIZE, 1)


def test_outline_of_an_image_that_is_too_large_is_refused_before_anything_is_made_of_it():
    size = (1_000_000, 1_000_000)
    for segmentation in ({"size": list(size), "counts": [10**12]}, [[1, 1, 4, 1, 4, 3]]):
        with pytest.raises(BadImage, match=r"1000000 x 1000000 pixels has more than the 178,956,970 allowed"):
            outline_of(segmentation, size, 1)


def test_runs_of_a_large_image_take_no_memory():
    """50 bytes of a file for 168 million pixels."""

    def read() -> int:
        size = (12_000, 14_000)
        outline_of({"size": list(size), "counts": [12_000 * 14_000]}, size, 1)
        return 0

    ended = forked(read, memory=1 << 25)
    assert ended.code == 0, ended.err
