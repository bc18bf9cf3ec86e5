"""Views: one crop box at two sizes, keyed draws, and geometry computed by hand."""

from __future__ import annotations

import math
import random
import resource
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from timm.data import create_transform
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from beitcli.data.transforms.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterTransform,
    PretrainingTransform,
    TokenizerTransform,
    center_box,
    draw_crop_box,
    evaluation_view,
    fit_center,
    jitter_colors,
    normalize,
    to_array,
)
from beitcli.data.transforms.finetuning import FinetuningTransform, erase, masked_erase
from beitcli.runtime.compute.keyed_rng import keyed_generator, keyed_integer

SIDE = 256


def coordinates(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Red is the column and green the row, in 1/255 of the side; blue is 0."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)
    pixels[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def corners(transform: np.ndarray) -> tuple[float, float, float, float]:
    """(left, right, upper, lower) of the box that a (3, h, w) view of `coordinates` shows, in shares of the side.

    Bicubic and Lanczos keep a ramp a ramp, away from the edges; so the middle half gives offset and slope.
    """

    def ends(values: np.ndarray) -> tuple[float, float]:
        inner = slice(len(values) // 4, 3 * len(values) // 4)
        slope, first = np.polyfit((np.arange(len(values))[inner] + 0.5) / len(values), values[inner] / 255, 1)
        return first, first + slope

    return *ends(transform[0].astype(float).mean(axis=0)), *ends(transform[1].astype(float).mean(axis=1))


# Pretraining


def test_both_views_show_the_same_box():
    transform = PretrainingTransform(seed=0, image_size=64, token_size=32, color_jitter=0.0)
    image = coordinates()
    boxes, flipped = [], 0
    for index in range(40):
        drawn = transform(image, 0, index)
        assert drawn["images"].shape == (3, 64, 64)
        assert drawn["token_images"].shape == (3, 32, 32)
        of_images, of_tokens = corners(drawn["images"]), corners(drawn["token_images"])
        assert of_images == pytest.approx(of_tokens, abs=0.01)
        flipped += of_images[1] < of_images[0]
        boxes.append(of_images)
    assert 10 <= flipped <= 30
    assert len({tuple(np.round(box, 2)) for box in boxes}) == 40


def test_patch_and_token_show_the_same_pixels():
    transform = PretrainingTransform(seed=3, image_size=64, token_size=32, color_jitter=0.4)
    drawn = transform(coordinates(), 1, 5)
    patches = drawn["images"].reshape(3, 8, 8, 8, 8).mean(axis=(2, 4))
    tokens = drawn["token_images"].reshape(3, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.abs(patches - tokens).max() < 2.0


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (32, 16)], ids=str)
def test_pretraining_view_is_crop_of_flip_of_jitter_by_hand(shape):
    height, width = shape
    transform = PretrainingTransform(
        seed=7, image_size=shape, token_size=(16, width // 2), color_jitter=0.4, min_crop=0.3
    )
    for index in range(6):
        rng = keyed_generator(7, "view", 2, index)
        image = jitter_colors(noise(), 0.4, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop_box = draw_crop_box(64, 48, rng, 0.3, target_aspect=width / height)
        expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, crop_box)).transpose(2, 0, 1)
        smaller = np.asarray(image.resize((width // 2, 16), Image.Resampling.LANCZOS, crop_box)).transpose(2, 0, 1)
        drawn = transform(noise(), 2, index)
        assert np.array_equal(drawn["images"], expected)
        assert np.array_equal(drawn["token_images"], smaller)


def test_views_are_keyed_by_seed_epoch_and_image_alone():
    image = noise()
    views = {
        "pretraining": lambda seed: PretrainingTransform(seed=seed, image_size=16, token_size=8),
        "tokenizer": lambda seed: TokenizerTransform(seed=seed, size=16),
        "finetuning": lambda seed: FinetuningTransform(
            seed=seed, size=16, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5
        ),
    }
    for name, make in views.items():
        first = make(1)(image, 0, 0)["images"]
        random.seed(99), np.random.seed(99), torch.manual_seed(99)  # noqa: NPY002
        make(1)(image, 3, 8)
        assert np.array_equal(make(1)(image, 0, 0)["images"], first), name
        others = [make(2)(image, 0, 0), make(1)(image, 1, 0), make(1)(image, 0, 1)]
        assert all(not np.array_equal(other["images"], first) for other in others), name


@pytest.mark.parametrize("make", [
    lambda: PretrainingTransform(seed=0, image_size=8, token_size=8, color_jitter=0.0),
    lambda: TokenizerTransform(seed=0, size=8),
    lambda: FinetuningTransform(seed=0, size=8),
])  # fmt: skip
def test_half_of_the_views_are_flipped(make):
    transform, image = make(), coordinates(32, 32)
    flipped = 0
    for index in range(400):
        red = transform(image, 0, index)["images"][0].astype(float)
        flipped += red[:, 0].mean() > red[:, -1].mean()
    assert 160 <= flipped <= 240  # 4 standard deviations


# Crop boxes


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    least=st.sampled_from([0.08, 0.3, 0.5, 1.0]),
    key=st.integers(0, 10**6),
)
def test_crop_boxes_lie_inside_and_keep_area_and_aspect(width, height, least, key):
    left, upper, right, lower = draw_crop_box(width, height, np.random.default_rng(key), least)
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    across, down = right - left, lower - upper
    # Sides are whole pixels, so half a pixel either way; a shape that fits no box gives the largest of aspect 4/3.
    assert (across - 0.5) / (down + 0.5) <= 4 / 3
    assert (down - 0.5) / (across + 0.5) <= 4 / 3
    if 3 / 4 <= width / height <= 4 / 3:
        assert (across + 0.5) * (down + 0.5) >= least * width * height * (1 - 1e-9)


def test_crop_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(0)
    boxes = np.array([draw_crop_box(4000, 4000, rng) for _ in range(3000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = across * down / 16e6, np.log(across / down)
    assert np.abs(aspect).max() <= math.log(4 / 3) + 1e-3
    small = area < 0.7  # larger ones are drawn again where they do not fit
    assert area[small].min() >= 0.0799
    assert np.quantile(area[small], [0.25, 0.5, 0.75]) == pytest.approx([0.235, 0.39, 0.545], abs=0.02)
    assert aspect[small].std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)
    assert abs(aspect[small].mean()) < 0.015


def test_a_shape_that_fits_no_box_gives_the_central_one():
    rng = np.random.default_rng(0)
    assert draw_crop_box(300, 30, rng, min_area=0.9) == (130, 0, 170, 30)
    assert draw_crop_box(30, 300, rng, min_area=0.9) == (0, 130, 30, 170)
    assert draw_crop_box(1, 1, rng) == (0, 0, 1, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (32, 128)])
def test_a_crop_is_distorted_by_a_third_at_most_whatever_its_target(height, width):
    boxes = np.array([draw_crop_box(4000, 4000, np.random.default_rng(key), target_aspect=width / height)
                      for key in range(400)])  # fmt: skip
    distortion = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]) * height / width
    assert 3 / 4 - 1e-2 <= distortion.min() < 0.8
    assert 1.25 < distortion.max() <= 4 / 3 + 1e-2


def test_a_shape_that_fits_no_box_of_a_wide_target_gives_the_central_one():
    rng = np.random.default_rng(0)
    assert draw_crop_box(300, 30, rng, min_area=0.9, target_aspect=2) == (110, 0, 190, 30)  # 30 * 4/3 * 2 = 80 across
    assert draw_crop_box(30, 300, rng, min_area=0.9, target_aspect=2) == (0, 140, 30, 160)  # 30 * 4/3 / 2 = 20 down


# Colours


def test_jitter_of_no_strength_changes_nothing():
    assert np.array_equal(np.asarray(jitter_colors(noise(), 0.0, np.random.default_rng(0))), np.asarray(noise()))


def test_jitter_stays_in_its_bounds():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))  # contrast and saturation leave an even grey as it is
    values = []
    for key in range(300):
        pixels = np.asarray(jitter_colors(grey, 0.4, np.random.default_rng(key)))
        assert (pixels == pixels[0, 0, 0]).all()
        values.append(int(pixels[0, 0, 0]))
    assert 59 <= min(values) <= 65
    assert 135 <= max(values) <= 141
    assert np.mean(values) == pytest.approx(100, abs=5)


def test_jitter_is_the_three_enhancers_in_a_drawn_order():
    orders = set()
    for key in range(40):
        rng = np.random.default_rng(key)
        factors, order = rng.uniform(0.6, 1.4, size=3), rng.permutation(3)
        image = noise()
        for which in order:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            image = kind(image).enhance(float(factors[which]))
        assert np.array_equal(np.asarray(jitter_colors(noise(), 0.4, np.random.default_rng(key))), np.asarray(image))
        orders.add(tuple(order))
    assert len(orders) == 6


# Central boxes


@pytest.mark.parametrize(
    ("image_size", "size", "share", "box"),
    [
        # 200 x 100 as small as covers 32 x 64 is 128 x 64, of which columns 48 to 79 are kept
        ((200, 100), (64, 32), 1.0, (75, 0, 125, 100)),
        # 100 x 80 as small as covers 48 x 32 is 48 x 38, of which rows 3 to 34 are kept
        ((100, 80), (32, 48), 1.0, (0, 3 * 80 / 38, 100, 35 * 80 / 38)),
        # 256 x 128 at 128 x 64 = 112 x 56 over 0.875, of which 8 and 4 pixels go on every side
        ((256, 128), (56, 112), 0.875, (16, 8, 240, 120)),
    ],
)
def test_center_box_by_hand(image_size, size, share, box):
    assert center_box(*image_size, size, share) == pytest.approx(box)
    transform = CenterTransform(size=size, crop_pct=share)(coordinates(*image_size))["images"]
    assert transform.shape == (3, *size)
    seen = (box[0] / image_size[0], box[2] / image_size[0], box[1] / image_size[1], box[3] / image_size[1])
    assert corners(transform) == pytest.approx(seen, abs=0.01)


@settings(deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), down=st.integers(1, 500), across=st.integers(1, 500))
def test_center_box_of_any_shape_lies_inside_and_touches_two_sides(width, height, down, across):
    left, upper, right, lower = center_box(width, height, (down, across))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height
    assert (left, right) == (0, width) or (upper, lower) == (0, height)


def test_fit_center_shows_the_central_square():
    transform = to_array(fit_center(coordinates(512, 256), 64))
    assert transform.shape == (3, 64, 64)
    assert corners(transform) == pytest.approx((0.25, 0.75, 0.0, 1.0), abs=0.01)
    tall = to_array(fit_center(coordinates(256, 512), 64))
    assert corners(tall) == pytest.approx((0.0, 1.0, 0.25, 0.75), abs=0.01)


def test_fit_center_with_a_share_keeps_the_middle_of_it():
    transform = to_array(fit_center(coordinates(), 112, crop_pct=0.875))
    assert corners(transform) == pytest.approx((1 / 16, 15 / 16, 1 / 16, 15 / 16), abs=0.01)
    assert center_box(256, 256, 112, 0.875) == (16, 16, 240, 240)
    by_hand = coordinates().resize((128, 128), Image.Resampling.BICUBIC).crop((8, 8, 120, 120))
    assert np.array_equal(transform, to_array(by_hand))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (640, 427), (333, 1000), (64, 64), (90, 61)])
@pytest.mark.parametrize(("size", "share"), [(224, 0.875), (224, 1.0), (48, 0.875), (64, 1.0)])
def test_fit_center_is_a_crop_of_the_resized_image_within_half_a_pixel(width, height, size, share):
    left, upper, right, lower = center_box(width, height, size, share)
    target = int(size / share)
    across, down = (int(target * side / min(width, height)) for side in (width, height))
    offset = (round((across - size) / 2), round((down - size) / 2))
    assert (left * across / width, upper * down / height) == pytest.approx(offset, abs=1e-9)
    assert ((right - left) * across / width, (lower - upper) * down / height) == pytest.approx((size, size), abs=1e-9)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inner = slice(size // 8, size - size // 8)  # at the edges the filter is cut off
    across_view, down_view = (
        np.asarray(fit_center(Image.fromarray(places.astype(np.float32)), size, share)) for places in (columns, rows)
    )
    for seen, begin, end in ((across_view, left, right), (down_view.T, upper, lower)):
        expected = begin + (np.arange(size) + 0.5) / size * (end - begin)
        assert np.abs(seen - expected)[inner, inner].max() < 0.5
    image = coordinates(width, height)
    transform = to_array(fit_center(image, size, share))
    whole = image.resize((across, down), Image.Resampling.BICUBIC)
    by_hand = to_array(whole.crop((*offset, offset[0] + size, offset[1] + size)))
    assert np.abs(transform.astype(int) - by_hand).max() <= 1  # rounding, which was in two places
    theirs = CenterCrop(size)(Resize(target, InterpolationMode.BICUBIC)(image))
    assert np.abs(transform.astype(int) - to_array(theirs)).max() <= 1


@settings(deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), size=st.sampled_from([32, 224, 384]))
def test_center_box_lies_inside(width, height, size):
    box = center_box(width, height, size)
    assert 0 <= box[0] < box[2] <= width
    assert 0 <= box[1] < box[3] <= height


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own memory from /proc")
@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1), (3, 2_000_000)])
def test_fit_center_of_a_long_image_needs_no_memory_for_its_length(width, height):
    image = Image.new("RGB", (width, height), (9, 99, 199))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, before[1]))
    try:
        transform = to_array(fit_center(image, 224))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert transform.shape == (3, 224, 224)
    assert (transform == np.array([9, 99, 199])[:, None, None]).all()


def test_fit_center_of_its_own_size_is_the_image_itself():
    assert np.array_equal(to_array(fit_center(noise(32, 32), 32)), to_array(noise(32, 32)))


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 64), share=st.sampled_from([0.875, 1]))
def test_fit_center_is_square_and_never_padded(width, height, size, share):
    white = Image.new("RGB", (width, height), (255, 255, 255))
    transform = to_array(fit_center(white, size, share))
    assert transform.shape == (3, size, size)
    assert (transform == 255).all()


def test_evaluation_crops_below_384_pixels_only():
    assert evaluation_view(224) == CenterTransform(size=224, crop_pct=0.875)
    assert evaluation_view(384) == CenterTransform(size=384, crop_pct=1.0)
    assert evaluation_view((192, 768)) == CenterTransform(size=(192, 768), crop_pct=0.875)
    images = evaluation_view(32)(noise(), 5, 9)["images"]
    assert np.array_equal(images, evaluation_view(32)(noise())["images"])


# Numbers


def test_to_array_is_channels_first():
    array = to_array(Image.new("RGB", (3, 2), (1, 2, 3)))
    assert array.shape == (3, 2, 3)
    assert array[:, 1, 2].tolist() == [1, 2, 3]
    assert array.flags["C_CONTIGUOUS"]


def test_normalize_by_hand():
    images = torch.tensor([0, 255, 51, 128], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    normal = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        by_hand = [(value / 255 - mean) / std for value in (0, 255, 51, 128)]
        assert normal[0, channel].flatten().tolist() == pytest.approx(by_hand, abs=1e-5)
    assert images[0, 0, 0, 1] == 255  # not in place
    assert normalize(normal, IMAGENET_MEAN, IMAGENET_STD) is normal


def test_normalize_copies_its_numbers_to_a_device_once_and_changes_none():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    with torch.inference_mode():
        first = normalize(images, mean, std)
    scale = torch.tensor(std).mul_(255).reciprocal_().view(3, 1, 1)
    shift = torch.tensor(mean).div_(torch.tensor(std)).view(3, 1, 1)
    assert torch.equal(first, images.float().mul_(scale).sub_(shift))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        again = normalize(images, list(mean), list(std))
    assert torch.equal(again, first)
    assert {event.name for event in profile.events()} & {"aten::lift_fresh", "aten::reciprocal_", "aten::div_"} == set()
    torch.nn.Parameter(torch.ones(3, 1, 1)).mul(again).sum().backward()  # no tensor of inference mode is left over


@pytest.mark.parametrize("transform", [
    PretrainingTransform(seed=0, image_size=32, token_size=16),
    TokenizerTransform(seed=0, size=24), CenterTransform(size=20),
    FinetuningTransform(seed=0, size=16),
    PretrainingTransform(seed=0, image_size=(16, 24), token_size=(8, 12)), CenterTransform(size=(20, 12)),
    PretrainingTransform(seed=0, image_size=(16, 24), token_size=None), FinetuningTransform(seed=0, size=(16, 8)),
])  # fmt: skip
def test_bytes_per_image_are_those_of_the_arrays(transform):
    assert transform.bytes_per_image == sum(array.nbytes for array in transform(noise(), 0, 0).values())


def test_finetuning_view_without_augmentation_is_a_crop():
    transform = FinetuningTransform(seed=0, size=16, min_crop=1.0)
    images = transform(Image.new("RGB", (40, 40), (128, 64, 255)), 0, 0)["images"]
    assert images.dtype == np.uint8
    assert [np.unique(channel).tolist() for channel in images] == [[128], [64], [255]]


def test_augmentation_of_an_image_asks_nothing_of_other_devices(monkeypatch):
    formatted = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_: formatted.append(1) or [])
    torch.manual_seed(0)  # what it costs while no GPU has been used
    assert formatted or torch.cuda.is_initialized() or not torch.backends.cuda.is_built()
    formatted.clear()
    FinetuningTransform(seed=0, size=16, rand_augment="rand-m5-inc1", erasing=0.5)(noise(), 0, 0)
    assert not formatted


@pytest.mark.parametrize("size", [32, (24, 40)], ids=str)
def test_finetuning_view_on_the_device_is_what_timm_makes_of_an_image(size):
    policy, (height, width) = "rand-m5-inc1", (size, size) if isinstance(size, int) else size
    transform = FinetuningTransform(seed=4, size=size, rand_augment=policy, erasing=0.5)
    whole = create_transform(
        (height, width), is_training=True, ratio=(3 / 4 * width / height, 4 / 3 * width / height), color_jitter=None,
        auto_augment=policy, interpolation="bicubic", re_prob=0.5, re_mode="pixel",
    )  # fmt: skip
    number_erased = 0
    for index in range(60):
        drawn = {name: torch.from_numpy(array) for name, array in transform(noise(), 1, index).items()}
        made = normalize(drawn["images"][None], IMAGENET_MEAN, IMAGENET_STD)
        erase(made, drawn["erased"][None], drawn["noise"])
        word = keyed_integer(4, "augmentation", 1, index)
        random.seed(word), np.random.seed(word % (1 << 32)), torch.manual_seed(word)  # noqa: NPY002
        expected = whole(noise())
        left, upper, right, lower = drawn["erased"].tolist()
        number_erased += len(drawn["noise"]) > 0
        assert torch.equal(made[0, :, upper:lower, left:right], expected[:, upper:lower, left:right])
        assert (made[0] - expected).abs().max() < 2e-6  # rounding: one product and sum instead of two
    assert 15 <= number_erased <= 45


def test_what_is_erased_is_the_same_by_either_way():
    transform = FinetuningTransform(seed=4, size=(24, 16), erasing=0.5)
    drawn = [transform(noise(), 0, index) for index in range(12)]
    boxes = torch.stack([torch.from_numpy(each["erased"]) for each in drawn])
    filling = torch.cat([torch.from_numpy(each["noise"]) for each in drawn])
    images = torch.zeros(12, 3, 24, 16)
    by_boxes = erase(images.clone(), boxes, filling)
    by_mask = masked_erase(images.clone(), boxes, filling)
    assert torch.equal(by_boxes, by_mask)
    assert (by_boxes != 0).sum() == len(filling)


@pytest.mark.parametrize("size", [(32, 64), (64, 32)], ids=str)
def test_finetuning_view_of_another_shape_is_distorted_by_a_third_at_most(size):
    transform = FinetuningTransform(seed=0, size=size)
    for index in range(40):
        images = transform(coordinates(), 0, index)["images"]
        assert images.shape == (3, *size)
        left, right, upper, lower = corners(images)
        distortion = abs(right - left) / (lower - upper) * size[0] / size[1]
        assert 0.73 < distortion < 1.37


def test_finetuning_view_erases_as_often_as_asked():
    even = Image.new("RGB", (32, 32), (128, 128, 128))

    def erased(probability: float) -> int:
        transform = FinetuningTransform(seed=0, size=16, erasing=probability)
        return sum(len(transform(even, 0, index).get("noise", ())) > 0 for index in range(200))

    assert erased(0.0) == 0
    assert erased(1.0) == 200
    assert 26 <= erased(0.25) <= 74  # 4 standard deviations


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m10"])
def test_finetuning_view_survives_the_highest_magnitudes(policy):
    transform = FinetuningTransform(seed=0, size=16, rand_augment=policy)
    for index in range(300):
        assert transform(noise(), 0, index)["images"].shape == (3, 16, 16)
