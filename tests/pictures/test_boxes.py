"""Boxes drawn on images: frames where the boxes are, in the colour of the class, with names that can be read."""

from __future__ import annotations

import numpy as np
import pytest

from beitcli.pictures.boxes import (
    colour_of,
    draw_bounding_boxes,
    draw_segmentation_masks,
    enlargement,
    line_width,
    place_name,
)

NAMES = ("cat", "dog")


def drawn(pixels: np.ndarray, *rows: tuple[tuple[float, ...], int, float]) -> np.ndarray:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    labels, scores = np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows])
    return np.asarray(draw_bounding_boxes(pixels, boxes, labels, scores, NAMES))


def test_frame_is_the_outermost_pixels_of_the_box():
    pixels = np.full((400, 500, 3), 7, np.uint8)
    picture = drawn(pixels, ((100.2, 50.4, 300.0, 200.9), 1, 0.9))
    framed = np.zeros((400, 500), bool)
    framed[50:201, 100:300] = True
    framed[52:199, 102:298] = False
    assert (picture[framed] == colour_of(1)).all()
    assert (picture[60:190, 110:290] == 7).all()
    assert (picture[201:] == 7).all()
    assert (pixels == 7).all()  # the image itself is left as it was


def test_objects_that_are_given_have_a_name_without_a_score():
    pixels, boxes, labels = np.zeros((400, 400, 3), np.uint8), np.array([[40.0, 140, 200, 200]]), np.array([0])
    given = np.asarray(draw_bounding_boxes(pixels, boxes, labels, None, NAMES))
    scored = np.asarray(draw_bounding_boxes(pixels, boxes, labels, np.array([0.5]), NAMES))
    grounds = [(picture[130] == colour_of(0)).all(axis=1).sum() for picture in (given, scored)]
    assert 0 < grounds[0] < grounds[1]


def test_best_box_lies_on_top():
    pixels = np.zeros((400, 400, 3), np.uint8)
    picture = drawn(pixels, ((40, 140, 200, 200), 0, 0.9), ((40, 140, 200, 200), 1, 0.5))
    assert (picture[140, 40:200] == colour_of(0)).all()


@pytest.mark.parametrize("size", [(32, 40), (120, 160), (200, 200), (400, 500)])
def test_names_are_legible_on_images_of_any_size(size):
    height, width = size
    factor = enlargement(height, width)
    box = (0.3 * width, 0.5 * height, 0.9 * width, 0.9 * height)
    picture = drawn(np.zeros((*size, 3), np.uint8), (box, 0, 0.5))
    assert picture.shape == (height * factor, width * factor, 3)
    assert min(picture.shape[:2]) >= 360
    above = picture[: round(box[1]) * factor]
    rows, columns = np.nonzero((above == colour_of(0)).all(axis=-1))
    assert rows.max() - rows.min() >= 18
    name = above[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    letters = (name != colour_of(0)).any(axis=-1)
    lines = np.nonzero(letters.any(axis=1))[0]
    assert lines.max() - lines.min() >= 9  # a capital's height of 12 pixels' font and more
    assert 0.05 < letters.mean() < 0.6


def test_names_stay_within_the_picture_and_off_each_other():
    frames = [(0, 0, 99, 50), (2, 2, 99, 60), (330, 200, 359, 359), (0, 0, 359, 359), (340, 0, 359, 20)]
    taken: list[tuple[int, int, int, int]] = []
    for frame in frames:
        taken.append(place_name(frame, (110, 20), (360, 360), taken))
    for number, (left, top, right, bottom) in enumerate(taken):
        assert (right - left, bottom - top) == (110, 20)
        assert 0 <= left < right <= 360
        assert 0 <= top < bottom <= 360
        for other in taken[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_long_name_is_shortened_to_the_picture():
    pixels = np.zeros((400, 400, 3), np.uint8)
    picture = draw_bounding_boxes(pixels, np.array([[0, 0, 400, 400]]), np.array([0]), np.array([0.5]), ["w" * 200])
    assert picture.size == (400, 400)


def test_masks_tint_their_pixels_alone():
    pixels = np.full((4, 4, 3), 200, np.uint8)
    first, second = np.zeros((2, 4, 4), bool)
    first[0, :2] = second[0, 1:3] = True
    tinted = draw_segmentation_masks(pixels, [first, second], np.array([0, 1]))
    expected = [np.rint(100 + 0.5 * np.array(colour_of(label))).tolist() for label in (0, 0, 1)]
    assert tinted[0, :3].tolist() == expected  # the best lies on top
    assert (tinted[1:] == 200).all()
    assert (pixels == 200).all()


def test_nothing_found_leaves_the_image():
    pixels = np.random.default_rng(0).integers(0, 255, (400, 380, 3), dtype=np.uint8)
    np.testing.assert_array_equal(drawn(pixels), pixels)


def test_neighbouring_classes_have_other_colours_and_lines_grow_with_the_picture():
    assert len({colour_of(label) for label in range(80)}) == 80
    assert [line_width(360, 500), line_width(1000, 1200)] == [2, 5]
