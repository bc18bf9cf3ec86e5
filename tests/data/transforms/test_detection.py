"""Views of images with boxes: the boxes follow the pixels through resize, crop and flip, and draws are keyed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.annotations.instance_masks import Bitmap, Polygons
from beitcli.data.transforms.detection import (
    DetectionEvalTransform,
    DetectionTransform,
    LabelledDetectionTransform,
    fitted_shape,
    moved,
)
from beitcli.engine.detection.task import unpacked

GRAY, RED = 60, (250, 10, 10)


def scene(box: tuple[int, int, int, int] = (30, 12, 54, 36), shape: tuple[int, int] = (60, 80)) -> Any:
    """A red rectangle on gray, its box, and a crowd's."""
    pixels = np.full((*shape, 3), GRAY, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = RED
    boxes = np.array([box, (0, 0, 10, 10)], np.float32)
    return pixels, BoxLabels(boxes, np.array([4, 5]), np.array([False, True]), np.array([576.0, 100.0]), shape)


def view_of(**how: object) -> DetectionTransform:
    plain = {"seed": 0, "size": (48, 64), "most": 3}
    return DetectionTransform(**(plain | how))  # type: ignore[arg-type]


def red_box(images: np.ndarray) -> np.ndarray:
    """Of the pixels that are more red than gray, in (3, H, W) uint8."""
    red = (images[0].astype(int) - images[1]) > 100
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize(
    ("shape", "factor", "expected"),
    [((60, 80), 1.0, (48, 64)), ((60, 80), 0.5, (24, 32)), ((100, 20), 1.0, (48, 10)), ((1, 500), 0.1, (1, 6))],
)
def test_fitted_shape_just_fits(shape, factor, expected):
    assert fitted_shape(shape, (48, 64), factor) == expected


def test_boxes_follow_the_pixels():
    mirrored, seen_boxes = set(), 0
    for index in range(60):
        seen = view_of()(scene(), 0, index)
        kept = seen["classes"] >= 0
        assert kept.sum() <= 1  # never the crowd
        if not kept.any():
            continue
        seen_boxes += 1
        assert seen["classes"][kept].tolist() == [4]
        np.testing.assert_allclose(seen["boxes"][kept][0], red_box(seen["images"]), atol=1.01)
        mirrored.add(bool(seen["boxes"][kept][0, 0] > 24))
    assert seen_boxes > 40
    assert mirrored == {True, False}


def test_scale_crop_and_flip_by_hand():
    """Twice as large and cut to (48, 64): of columns 2 a ... 2 a + 64 - 1 of 128."""
    for index in range(40):
        seen = view_of(factors=(2.0, 2.0), size=(48, 64))(scene((0, 0, 80, 60)), 0, index)
        assert seen["boxes"][0].tolist() == [0, 0, 64, 48]  # the whole crop
        assert (seen["images"][0] > 200).all()
    boxes, kept = moved(np.array([[10, 10, 30, 30]], np.float32), (2.0, 1.0), (30, 5), (40, 12, 3))
    assert boxes.tolist() == [[5, 0, 12, 30]]
    assert kept.tolist() == [True]
    boxes, kept = moved(np.array([[10, 10, 30, 30]], np.float32), (1.0, 1.0), (0, 29), (40, 40, 3))
    assert (boxes.tolist(), kept.tolist()) == ([[0, 10, 1, 30]], [False])  # 5% of it are left


def test_what_is_smaller_is_padded_with_the_mean_colour():
    seen = view_of(factors=(0.5, 0.5))(scene(), 0, 0)
    mean = [round(255 * value) for value in (0.485, 0.456, 0.406)]
    assert seen["images"][:, 47, 63].tolist() == mean
    assert (seen["images"][:, 24:] == np.array(mean)[:, None, None]).all()
    assert not (seen["images"][:, :24, :32] == np.array(mean)[:, None, None]).all(axis=0).any()


@pytest.mark.parametrize("kind", ["polygon", "bitmap"])
def test_masks_follow_the_pixels(kind):
    pixels, marked = scene()
    whole = np.zeros((60, 80), bool)
    whole[12:36, 30:54] = True
    polygon = Polygons((np.array([[30, 12], [54, 12], [54, 36], [30, 36]], np.float32),))
    outline = polygon if kind == "polygon" else Bitmap.of(whole)
    marked = replace(marked, outlines=(outline, outline))
    seen_masks = 0
    for index in range(40):
        seen = view_of(outlines=True)((pixels, marked), 0, index)
        plain = view_of()((pixels, marked), 0, index)
        for name in plain:
            np.testing.assert_array_equal(seen[name], plain[name])
        masks = unpacked(torch.from_numpy(seen["masks"]), 48, 64).numpy() > 0
        assert masks.shape == ((seen["classes"] >= 0).sum(), 48, 64)  # not as many as an image of the data may have
        if seen["classes"][0] < 0:
            continue
        seen_masks += 1
        red = (seen["images"][0].astype(int) - seen["images"][1]) > 95
        differing = (masks[0] != red).sum()
        x0, y0, x1, y1 = seen["boxes"][0]
        assert differing <= 1.2 * ((x1 - x0) + (y1 - y0)) + 4  # the seam
    assert seen_masks > 25


def test_view_follows_from_seed_epoch_and_image_alone():
    first, again = (view_of()(scene(), 3, 7) for _ in "ab")
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    for seed, epoch, index in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        assert not np.array_equal(first["images"], view_of(seed=seed)(scene(), epoch, index)["images"])


def test_image_without_boxes_has_room_only():
    pixels, _ = scene()
    none = BoxLabels(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), (60, 80))
    seen = view_of()((pixels, none), 0, 0)
    assert seen["boxes"].shape == (3, 4)
    assert seen["classes"].tolist() == [-1, -1, -1]


def test_fitted_view_tells_what_it_did():
    pixels, marked = scene()
    seen = DetectionEvalTransform(size=(64, 64))(pixels)
    assert (seen["content"].tolist(), seen["size"].tolist()) == ([48, 64], [60, 80])
    np.testing.assert_allclose(red_box(seen["images"]), np.array([30, 12, 54, 36]) * 0.8, atol=1)
    alike = LabelledDetectionTransform(size=(64, 64))((pixels, marked))
    np.testing.assert_array_equal(alike["images"], seen["images"])
