"""Boxes drawn on images: frames where the boxes are, in the colour of the class, and nothing else changed."""

from __future__ import annotations

import numpy as np

from beitcli.pictures.boxes import colour_of, draw_bounding_boxes, draw_segmentation_masks, line_width

NAMES = ("cat", "dog")


def drawn(pixels: np.ndarray, *rows: tuple[tuple[float, ...], int, float]) -> np.ndarray:
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    labels, scores = np.array([row[1] for row in rows], np.int64), np.array([row[2] for row in rows])
    return np.asarray(draw_bounding_boxes(pixels, boxes, labels, scores, NAMES))


def test_frame_is_the_outermost_pixels_of_the_box():
    pixels = np.full((40, 50, 3), 7, np.uint8)
    picture = drawn(pixels, ((10.2, 5.4, 30.0, 20.9), 1, 0.9))
    framed = np.zeros((40, 50), bool)
    framed[5:21, 10:30] = True
    framed[6:20, 11:29] = False
    assert (picture[framed] == colour_of(1)).all()
    assert (picture[~framed] == 7).all()
    assert (pixels == 7).all()  # the image itself is left as it was


def test_best_box_lies_on_top():
    pixels = np.zeros((40, 40, 3), np.uint8)
    picture = drawn(pixels, ((4, 4, 20, 20), 0, 0.9), ((4, 4, 20, 20), 1, 0.5))
    assert (picture[4, 4:20] == colour_of(0)).all()


def test_names_stand_on_larger_images_only():
    box = ((60.0, 60.0, 120.0, 110.0), 0, 0.5)
    small, large = np.zeros((120, 160, 3), np.uint8), np.zeros((200, 200, 3), np.uint8)
    inside = drawn(small, ((60.0, 60.0, 100.0, 110.0), 0, 0.5))
    assert (inside[:60] == 0).all()
    named = drawn(large, box)
    ground = (named[:60] == colour_of(0)).all(axis=-1)
    rows, columns = np.nonzero(ground)
    assert ground.sum() > 100  # above the box
    name = named[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert 0.05 < (name.sum(axis=-1) < 250).mean() < 0.6  # its letters, black
    assert [line_width(127, 300), line_width(200, 200)] == [1, 2]
    assert line_width(1000, 1200) == 5


def test_name_goes_inside_where_there_is_no_room_above_and_thin_boxes_are_drawn():
    picture = drawn(
        np.zeros((200, 200, 3), np.uint8), ((50.0, 0.0, 150.0, 80.0), 0, 0.5), ((0.0, 199.6, 0.2, 200.0), 1, 0.4)
    )
    assert (picture[2:8, 52:60] == colour_of(0)).all(axis=-1).any()


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
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(drawn(pixels), pixels)


def test_neighbouring_classes_have_other_colours():
    assert len({colour_of(label) for label in range(80)}) == 80
    assert colour_of(0) != (0, 0, 0)
