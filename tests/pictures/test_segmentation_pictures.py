"""Label maps as pictures: PASCAL VOC's colours, and pixels that stay what they were."""

from __future__ import annotations

import numpy as np

from beitcli.pictures.segmentation import indexed, overlay, palette


def test_palette_begins_as_pascal_voc_s_and_has_no_colour_twice():
    assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette()[[8, 255]].tolist() == [[64, 0, 0], [224, 224, 192]]
    assert len(np.unique(palette(), axis=0)) == 256


def test_indexed_picture_keeps_its_values():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = indexed(values)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), values)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")).reshape(-1, 3), palette())


def test_overlay_mixes_the_colour_of_the_class_in_and_leaves_what_has_none():
    pixels = np.full((1, 3, 3), 200, np.uint8)
    values = np.array([[1, 255, 0]], np.uint8)
    picture = np.asarray(overlay(pixels, values))
    assert picture[0, 0].tolist() == [
        round(0.45 * 200 + 0.55 * red) for red in indexed(values).convert("RGB").getpixel((0, 0))
    ]
    assert picture[0, 0].tolist() == [round(0.45 * 200 + 0.55 * 128), 90, 90]
    assert picture[0, 1:].tolist() == [[200, 200, 200]] * 2
