"""The fast view: the reference's draws and boxes, its pixels within rounding, and its colours by hand."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageStat

from beitcli.data.caches.token_cache import transform_identity
from beitcli.data.transforms import pretraining as fast_view
from beitcli.data.transforms.base import (
    BRIGHTNESS,
    CONTRAST,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SATURATION,
    PretrainingTransform,
    draw_crop_box,
    draw_jitter,
    normalize,
)
from beitcli.data.transforms.color_jitter import PixelNormalizer, apply_color, compose_jitter
from beitcli.data.transforms.pretraining import FastPretrainingTransform, resize
from beitcli.runtime.compute.keyed_rng import keyed_generator

ENHANCERS = {BRIGHTNESS: ImageEnhance.Brightness, CONTRAST: ImageEnhance.Contrast, SATURATION: ImageEnhance.Color}
LUMA = np.array([19595, 38470, 7471]) / 65536


def photograph(width: int = 90, height: int = 70, seed: int = 0) -> np.ndarray:
    """(H, W, 3) smooth colours over the whole range."""
    knots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC))


def views_of(pixels: np.ndarray, index: int, **more: object) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the fast view and the reference make of it."""
    options = {"seed": 3, "image_size": 32, "token_size": 16} | more
    fast, reference = FastPretrainingTransform(**options), PretrainingTransform(**options)
    return fast(pixels, 1, index), reference(Image.fromarray(pixels), 1, index)


def coloured(drawn: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(3, H, W) in levels, colours applied."""
    levels = 255 * apply_color(torch.from_numpy(drawn[name])[None], torch.from_numpy(drawn["color"])[None])
    return levels[0].numpy()


def cut(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255)


# Boxes


@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (32, 16)], ids=str)
def test_fast_view_is_the_drawn_box_resized_and_flipped(shape):
    height, width = shape
    pixels, flips = photograph(), 0
    for index in range(12):
        rng = keyed_generator(7, "view", 2, index)
        draw_jitter(0.4, rng)
        image, flipped = Image.fromarray(pixels), rng.random() < 0.5
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop = image.crop(draw_crop_box(90, 70, rng, 0.3, target_aspect=width / height))
        transform = FastPretrainingTransform(seed=7, image_size=shape, token_size=(16, width // 2), min_crop=0.3)
        drawn = transform(pixels, 2, index)
        expected = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        smaller = np.asarray(crop.resize((width // 2, 16), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        assert np.abs(drawn["images"].astype(int) - expected).max() <= 2
        assert np.abs(drawn["token_images"].astype(int) - smaller).max() <= 2
        flips += flipped
    assert 0 < flips < 12


def test_fast_view_without_jitter_is_the_reference_but_for_edges():
    for index in range(20):
        fast, reference = views_of(photograph(), index, color_jitter=0.0)
        assert fast.keys() == reference.keys() == {"images", "token_images"}
        for name, theirs in reference.items():
            apart = np.abs(fast[name].astype(int) - theirs)
            assert apart.mean() < 1.5, name
            assert apart[:, 4:-4, 4:-4].max() <= 2, name


def test_fast_view_with_jitter_is_near_the_reference():
    apart = [
        np.abs(coloured(fast, name) - reference[name]).mean()
        for fast, reference in (views_of(photograph(seed=index), index) for index in range(20))
        for name in ("images", "token_images")
    ]
    assert np.mean(apart) < 2.0  # levels of 255


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 60), height=st.integers(1, 60), index=st.integers(0, 1000))
def test_fast_view_of_any_shape_keeps_an_even_colour(width, height, index):
    even = np.full((height, width, 3), (10, 100, 250), dtype=np.uint8)
    fast, _ = views_of(even, index, color_jitter=0.0)
    assert (fast["images"] == np.array((10, 100, 250))[:, None, None]).all()
    assert (fast["token_images"] == np.array((10, 100, 250))[:, None, None]).all()


def test_fast_view_leaves_its_pixels_and_takes_read_only_ones():
    pixels = photograph()
    before = pixels.copy()
    first, _ = views_of(pixels, 0)
    pixels.flags.writeable = False
    second, _ = views_of(pixels, 0)
    assert np.array_equal(pixels, before)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_tokenizers_image_in_bicubic_is_the_networks_at_the_same_size():
    for index in range(4):
        for drawn in views_of(photograph(), index, token_size=32, token_filter="bicubic"):
            assert np.array_equal(drawn["token_images"], drawn["images"])
        for drawn in views_of(photograph(), index, token_size=32):
            assert not np.array_equal(drawn["token_images"], drawn["images"])


def test_caches_of_tokens_are_found_again_and_those_of_another_filter_are_others():
    common = {"seed": 3, "image_size": 32, "token_size": 16}
    assert transform_identity(FastPretrainingTransform(**common)) == {
        "class": "FastPretrainingView", "color_jitter": 0.4, "min_crop": 0.08, **common,
    }  # fmt: skip
    other = transform_identity(FastPretrainingTransform(token_filter="bicubic", **common))
    assert other["token_filter"] == "bicubic"


def test_without_torchs_lanczos_pillows_gives_the_same(monkeypatch):
    expected = resize(photograph(), (24, 20), "lanczos")
    monkeypatch.setattr(fast_view, "_TORCH_HAS_LANCZOS", False)
    pillows = resize(photograph(), (24, 20), "lanczos")
    assert pillows.shape == expected.shape == (3, 24, 20)
    assert (pillows.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("options", [
    {}, {"color_jitter": 0.0}, {"token_size": None}, {"image_size": (16, 24), "token_size": (8, 12)},
], ids=str)  # fmt: skip
def test_bytes_per_image_are_those_of_the_fast_arrays(options):
    transform = FastPretrainingTransform(**({"seed": 0, "image_size": 32, "token_size": 16} | options))
    drawn = transform(photograph(), 0, 0)
    assert transform.bytes_per_image == sum(array.nbytes for array in drawn.values())
    assert ("color" in drawn) == (transform.color_jitter > 0)


# Colours


def by_hand(levels: np.ndarray, changes: list[tuple[int, float]], mean: float) -> np.ndarray:
    """One change after another on (n, 3) levels, each cut to [0, 255] and half a level lower, as Pillow's on average.

    Args:
        mean: What the contrast is of.
    """
    for which, factor in changes:
        if which == BRIGHTNESS:
            levels = levels * factor
        elif which == CONTRAST:
            levels = mean + factor * (levels - mean)
        else:
            luma = (levels @ LUMA)[:, None]
            levels = luma + factor * (levels - luma)
        levels = cut(levels - 0.5)
    return levels


@settings(deadline=None, max_examples=60)
@given(
    order=st.sampled_from(list(permutations((BRIGHTNESS, CONTRAST, SATURATION)))),
    factors=st.tuples(*[st.floats(0, 2)] * 3),
    key=st.integers(0, 99),
)
def test_nine_numbers_say_three_changes_in_any_order_clipping_included(order, factors, key):
    pixels = np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    changes = list(zip(order, factors, strict=True))
    brightness = factors[order.index(BRIGHTNESS)] if order.index(BRIGHTNESS) < order.index(CONTRAST) else 1.0
    clipped = np.minimum(pixels, round(255 / brightness)) if brightness > 1 else pixels
    mean = int(brightness * float((clipped @ LUMA).mean()) + 0.5)
    color = torch.from_numpy(compose_jitter(pixels, changes))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    levels = 255 * apply_color(images, color[None])[0].permute(1, 2, 0).reshape(-1, 3).numpy()
    assert np.abs(levels - by_hand(pixels.reshape(-1, 3).astype(float), changes, mean)).max() < 2e-3


def test_contrast_is_of_the_whole_images_grey_as_pillow_takes_it():
    for seed in range(10):
        pixels = photograph(60, 40, seed)  # below 64 rows: all of them are looked at
        pillows = int(ImageStat.Stat(Image.fromarray(pixels).convert("L")).mean[0] + 0.5)
        gain, offset, *_ = compose_jitter(pixels, [(CONTRAST, 0.0)]).tolist()
        assert gain == 0.0
        assert offset + 0.5 == pytest.approx(pillows, abs=1)


def test_each_change_alone_is_pillows_within_a_level():
    pixels = photograph()
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for which in (BRIGHTNESS, CONTRAST, SATURATION):
        for factor in (0.6, 0.85, 1.2, 1.4):
            theirs = np.asarray(ENHANCERS[which](Image.fromarray(pixels)).enhance(factor)).transpose(2, 0, 1)
            color = torch.from_numpy(compose_jitter(pixels, [(which, factor)]))[None]
            ours = 255 * apply_color(images, color)[0].numpy()
            assert np.abs(ours - theirs).max() < 1.6, (which, factor)
            assert abs((ours - theirs).mean()) < 0.5, (which, factor)


def random_colors(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([
        compose_jitter(photograph(seed=index), draw_jitter(0.4, np.random.default_rng(index))) for index in range(count)
    ]))  # fmt: skip


def test_apply_color_normalises_what_it_coloured():
    images = torch.from_numpy(photograph(16, 12)).permute(2, 0, 1).repeat(6, 1, 1, 1)
    colors = random_colors(6)
    unit = apply_color(images, colors)
    assert unit.dtype == torch.float32
    assert 0 <= unit.min() < unit.max() <= 1
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD), (unit - mean) / std, atol=1e-5)


def test_apply_color_is_the_same_compiled_in_a_batch_and_alone():
    images = torch.from_numpy(photograph(16, 12)).permute(2, 0, 1).repeat(6, 1, 1, 1)
    colors = random_colors(6)
    whole = apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    for place in range(6):
        alone = apply_color(images[place : place + 1], colors[place : place + 1], IMAGENET_MEAN, IMAGENET_STD)
        assert torch.equal(alone[0], whole[place])
    normalizer = PixelNormalizer(IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(normalizer(images, colors), whole)
    compiled = torch.compile(normalizer, backend="aot_eager", fullgraph=True)  # the form for other devices
    assert torch.allclose(compiled(images, colors), whole, atol=1e-5)
    plain = normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(normalizer(images, None), plain)
    assert torch.allclose(compiled(images, None), plain, atol=1e-6)
    assert not normalizer.state_dict()  # constants are no weights
