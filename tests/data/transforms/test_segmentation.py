"""Views of images and label maps together: aligned, keyed, padded, and not of one class alone."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from beitcli.data.annotations.label_maps import IGNORED, LabelMapping
from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import ordered_batches, training_batches
from beitcli.data.sources.segmentation import open_segmentation
from beitcli.data.transforms.segmentation import (
    LabelledSegmentationTransform,
    SegmentationEvalTransform,
    SegmentationTransform,
    distort,
    resized_shape,
)

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]], dtype=np.uint8)


def painted(height: int = 60, width: int = 80, cell: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Squares in four colours, and the number of each pixel's colour."""
    down, across = np.mgrid[:height, :width] // cell
    labels = ((down * 2 + across) % 4).astype(np.uint8)
    return COLOURS[labels], labels


def view_of(**how: object) -> SegmentationTransform:
    plain = {"seed": 0, "size": (32, 40), "short_side": 60, "distorts": False}
    return SegmentationTransform(**(plain | how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "short_side", "expected"),
    [((60, 80), 30, (30, 40)), ((80, 60), 90, (120, 90)), ((10, 100), 20, (8, 80)), ((33, 47), 0, (33, 47))],
)
def test_resized_shape_keeps_the_aspect_and_bounds_the_longer_side(shape, short_side, expected):
    assert resized_shape(shape, short_side) == expected


def test_crop_and_labels_show_the_same_place():
    for index in range(20):
        seen = view_of()(painted(), 0, index)
        images, targets = seen["images"].transpose(1, 2, 0).astype(int), seen["targets"]
        labelled = targets != IGNORED
        nearest = np.abs(images[..., None, :] - COLOURS.astype(int)).sum(-1).argmin(-1)
        agreeing = (nearest == targets)[labelled].mean()
        assert agreeing > 0.93  # all but the seams, where colours mix


def test_view_follows_from_seed_epoch_and_image_alone():
    first, again = (view_of(distorts=True)(painted(), 3, 7) for _ in "ab")
    np.testing.assert_array_equal(first["images"], again["images"])
    np.testing.assert_array_equal(first["targets"], again["targets"])
    for seed, epoch, index in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        other = view_of(seed=seed, distorts=True)(painted(), epoch, index)
        assert not np.array_equal(first["images"], other["images"])


def test_what_the_crop_lacks_is_mean_colour_and_ignored():
    seen = view_of(size=(64, 96), short_side=30, factors=(1.0, 1.0), largest_share=1.0)(painted(), 0, 0)
    assert seen["images"].shape == (3, 64, 96)
    assert (seen["targets"][30:] == IGNORED).all()
    assert (seen["targets"][:, 40:] == IGNORED).all()
    assert (seen["targets"][:30, :40] != IGNORED).all()
    assert seen["images"][:, 63, 95].tolist() == [round(255 * mean) for mean in (0.485, 0.456, 0.406)]


def test_resize_factor_covers_its_range():
    labels = np.zeros((64, 64), np.uint8)
    labels[::2] = 1
    areas = []
    for index in range(300):
        seen = view_of(size=(256, 256), short_side=64)((np.zeros((64, 64, 3), np.uint8), labels), 0, index)
        areas.append((seen["targets"] != IGNORED).sum() ** 0.5 / 64)
    assert min(areas) == pytest.approx(0.5, abs=0.03)
    assert max(areas) == pytest.approx(2.0, abs=0.03)
    assert np.mean(areas) == pytest.approx(1.25, abs=0.06)


def test_crops_of_one_class_are_drawn_again():
    """A disc of class 1 in the middle of much of class 0, and an ignored rim that counts for nothing."""
    down, across = np.mgrid[:90, :90] - 45
    labels = (down**2 + across**2 < 400).astype(np.uint8)
    pixels = np.zeros((90, 90, 3), np.uint8)

    def shares(largest_share: float) -> np.ndarray:
        transform = view_of(size=(24, 24), short_side=90, factors=(1.0, 1.0), largest_share=largest_share)
        counts = [
            np.bincount(transform((pixels, labels), 0, index)["targets"].ravel(), minlength=2) for index in range(200)
        ]
        return np.array([each.max() / each.sum() for each in counts])

    assert (shares(1.0) >= 0.75).mean() > 0.6
    assert (shares(0.75) >= 0.75).mean() < 0.25


def test_half_of_the_crops_are_mirrored():
    pixels, labels = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    labels[:, 4:] = 1
    transform = view_of(size=(8, 8), short_side=8, factors=(1.0, 1.0))
    mirrored = [transform((pixels, labels), 0, index)["targets"][0, 0] == 1 for index in range(400)]
    assert 0.42 < np.mean(mirrored) < 0.58


def test_distortion_leaves_some_images_as_they_are_and_stays_within_its_bounds():
    grey = np.full((1, 1, 3), 100, np.uint8)
    seen = [distort(grey, np.random.default_rng(seed))[0, 0] for seed in range(2000)]
    unchanged = np.mean([(each == 100).all() for each in seen])
    assert 0.22 < unchanged < 0.3  # neither brightness nor contrast: 1/4; the others do nothing to grey
    levels = np.array(seen)[:, 0]
    assert levels.min() >= (100 - 32) * 0.5 - 1
    assert levels.max() <= (100 + 32) * 1.5 + 1


def test_distortion_turns_hues_by_up_to_18_degrees_of_180():
    red = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    hues = [colorsys.rgb_to_hsv(*(distort(red, np.random.default_rng(seed))[0, 0] / 255))[0] for seed in range(300)]
    turned = (np.array(hues) + 0.5) % 1 - 0.5
    assert np.abs(turned).max() <= 0.1 + 0.02
    assert np.abs(turned).max() > 0.08
    assert (np.abs(turned) < 0.005).mean() > 0.4


def test_whole_view_gives_every_scale_and_the_image_s_own_size():
    seen = SegmentationEvalTransform(short_side=30, scales=(0.5, 1.0))(painted()[0])
    assert [seen[f"images_{number}"].shape for number in (0, 1)] == [(3, 15, 20), (3, 30, 40)]
    assert seen["size"].tolist() == [60, 80]


def test_loader_hands_pixels_and_labels_to_the_view_with_any_number_of_workers():
    source = open_segmentation(["sample"], LabelMapping(), sample_size=32).subset(np.arange(40, 60))
    streams = []
    for workers in (0, 2):
        part = StreamPart(seed=0, batch_size=4, images_seen=8, steps=3)
        batches = training_batches(source, view_of(size=(16, 16), short_side=32), part, workers=workers)
        streams.append(list(batches))
    for one, other in zip(*streams, strict=True):
        assert one.indices == other.indices
        for name in ("images", "targets"):
            np.testing.assert_array_equal(one.tensors[name].numpy(), other.tensors[name].numpy())
    whole = next(ordered_batches(source, LabelledSegmentationTransform(short_side=0), batch_size=1, workers=0))
    np.testing.assert_array_equal(whole.tensors["targets"][0].numpy(), source.labels(0, (32, 32)))
