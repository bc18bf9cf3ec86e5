"""Pictures beside each other, and an image beside its reconstruction."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.panels import caption_size, crisp, grid_of, mark_point
from beitcli.pictures.reconstruction import reconstruction_pair

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(size, colour):
    return Image.new("RGB", size, colour)


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def test_crisp_repeats_whole_pixels():
    image = noise((30, 20))
    large = crisp(image, 448)
    assert large.size == (450, 300)
    assert np.array_equal(np.asarray(large)[::15, ::15], np.asarray(image))


def test_crisp_leaves_large_images_and_makes_rgb():
    image = Image.new("L", (500, 300), 7)
    assert crisp(image, 448).size == (500, 300)
    assert crisp(image, 448).mode == "RGB"


def test_grid_places_images_in_reading_order():
    picture = grid_of([plain((10, 8), colour) for colour in (RED, GREEN, BLUE)], columns=2, gap=4)
    assert picture.size == (2 * 10 + 3 * 4, 2 * 8 + 3 * 4)
    assert picture.getpixel((4, 4)) == RED
    assert picture.getpixel((18, 4)) == GREEN
    assert picture.getpixel((4, 16)) == BLUE
    assert picture.getpixel((18, 16)) == (255, 255, 255)
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_grid_centres_smaller_images():
    picture = grid_of([plain((20, 20), RED), plain((10, 10), BLUE)], columns=1, gap=0)
    assert picture.size == (20, 30)
    assert picture.getpixel((5, 20)) == BLUE
    assert picture.getpixel((4, 20)) == (255, 255, 255)


def test_grid_captions_take_room_below_and_stay_in_their_column():
    images = [plain((100, 50), RED), plain((100, 50), GREEN)]
    picture = grid_of(images, gap=10, captions=["short", "a caption much too long for its picture"])
    assert picture.size == (230, 50 + 2 * 10 + round(1.75 * caption_size(100)))
    ink = np.asarray(picture)[60:].min(-1) < 128
    assert ink[:, 10:110].any()
    assert ink[:, 120:220].any()
    assert not ink[:, 110:120].any()
    assert not ink[:, 220:].any()


def test_grid_captions_are_light_on_dark():
    picture = grid_of([plain((100, 20), RED)], captions=["words"], background=(0, 0, 0))
    assert np.asarray(picture)[40:].max() > 200


@pytest.mark.parametrize(
    ("count", "columns", "captions"),
    [(0, None, None), (2, 0, None), (2, None, ["one"])],
    ids=["none", "columns", "words"],
)
def test_grid_refuses_what_makes_no_picture(count, columns, captions):
    with pytest.raises(ValueError, match=r"make no picture|captions for"):
        grid_of([plain((4, 4), RED)] * count, columns, captions=captions)


def test_marker_stays_near_its_point_even_at_the_edge():
    image = plain((208, 208), GREEN)
    mark_point(image, (0, 100), "1", BLUE)
    changed = (np.asarray(image) != GREEN).any(-1)
    rows, columns = np.nonzero(changed)
    assert columns.max() <= 8
    assert 92 <= rows.min() <= rows.max() <= 108


def test_reconstruction_pair_shows_both_at_one_size_unsmoothed():
    original, decoded = noise((112, 112)), noise((56, 56), seed=1)
    picture = reconstruction_pair(original, decoded)
    assert picture.width == 2 * 224 + 3 * 16
    pixels = np.asarray(picture)
    assert np.array_equal(pixels[16:240:2, 16:240:2], np.asarray(original))
    assert np.array_equal(pixels[16:240:4, 256:480:4], np.asarray(decoded))
