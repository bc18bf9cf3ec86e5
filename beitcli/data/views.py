"""Views of an image: what is cut from it and at which sizes.

Pretraining follows the paper's order (as in the release): color jitter, flip, then ONE crop box resized twice,
bicubic for the backbone and Lanczos for the tokenizer, so that a visual token and its patch show the same pixels.
Every draw is keyed by (seed, purpose, epoch, image).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from PIL import Image, ImageEnhance

from beitcli.runtime.keyed import keyed_generator, keyed_integer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Box = tuple[int, int, int, int]


def to_array(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def draw_crop_box(
    width: int, height: int, rng: np.random.Generator, min_area: float = 0.08, max_aspect: float = 4 / 3
) -> Box:
    """A random (left, upper, right, lower): area uniform in [min_area, 1], aspect log-uniform; centred if none fits."""
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1.0)
        aspect = math.exp(rng.uniform(-math.log(max_aspect), math.log(max_aspect)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left = int(rng.integers(width - across + 1))
            upper = int(rng.integers(height - down + 1))
            return left, upper, left + across, upper + down
    across = min(width, max(1, round(height * max_aspect)))
    down = min(height, max(1, round(width * max_aspect)))
    left, upper = (width - across) // 2, (height - down) // 2
    return left, upper, left + across, upper + down


def jitter_colors(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors uniform in 1 +- strength, in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
    for which in rng.permutation(3):
        image = enhancers[which](image).enhance(float(factors[which]))
    return image


def square_box(width: int, height: int, size: int, crop_share: float = 1.0) -> tuple[float, float, float, float]:
    """(left, upper, right, lower) in pixels of the image: its central square, as cut from a whole-pixel resize.

    The shorter side at size / crop_share pixels, then the central size x size of them, seen in the image itself.
    """
    scale = max(size, round(size / crop_share)) / min(width, height)

    def span(side: int) -> tuple[float, float]:
        resized = max(size, round(side * scale))
        before = (resized - size) // 2
        return before * side / resized, (before + size) * side / resized

    (left, right), (upper, lower) = span(width), span(height)
    return left, upper, right, lower


def fit_square(
    image: Image.Image, size: int, crop_share: float = 1.0, filter: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """The central square at size x size pixels, resized from its box alone: a long image costs no more than it."""
    return image.resize((size, size), filter, square_box(*image.size, size, crop_share))


@dataclass(frozen=True, kw_only=True)
class PretrainingView:
    """One crop box at two sizes.

    Attributes:
        image_size: Side of the backbone's image in pixels.
        token_size: Side of the tokenizer's image in pixels.
    """

    seed: int
    image_size: int
    token_size: int
    color_jitter: float = 0.4
    min_crop: float = 0.08

    @property
    def bytes_per_image(self) -> int:
        return 3 * (self.image_size**2 + self.token_size**2)

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """`images` (3, H, W) and `token_images` (3, h, w), uint8."""
        rng = keyed_generator(self.seed, "view", epoch, index)
        if self.color_jitter > 0:
            image = jitter_colors(image, self.color_jitter, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = draw_crop_box(*image.size, rng, self.min_crop)
        side, token_side = self.image_size, self.token_size
        return {
            "images": to_array(image.resize((side, side), Image.Resampling.BICUBIC, box)),
            "token_images": to_array(image.resize((token_side, token_side), Image.Resampling.LANCZOS, box)),
        }


@dataclass(frozen=True, kw_only=True)
class TokenizerView:
    """What a tokenizer learns from: random crops of at least half the area, flipped at random."""

    seed: int
    size: int
    min_crop: float = 0.5

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size**2

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """`images` (3, H, W) uint8."""
        rng = keyed_generator(self.seed, "view", epoch, index)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = draw_crop_box(*image.size, rng, self.min_crop)
        return {"images": to_array(image.resize((self.size, self.size), Image.Resampling.LANCZOS, box))}


@dataclass(frozen=True, kw_only=True)
class CenterView:
    """The same central square always.

    Attributes:
        crop_share: Share of the resized side that is kept: 0.875 below 384 pixels in classification, else 1.
    """

    size: int
    crop_share: float = 1.0
    filter: int = Image.Resampling.BICUBIC

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size**2

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """`images` (3, H, W) uint8."""
        return {"images": to_array(fit_square(image, self.size, self.crop_share, self.filter))}


def evaluation_view(size: int) -> CenterView:
    """The release's evaluation crop."""
    return CenterView(size=size, crop_share=0.875 if size < 384 else 1.0)


def _at_least_one_bit(level_fn: Callable[..., tuple[int, ...]], *level: object) -> tuple[int, ...]:
    """timm asks for posterising to no bits at its highest magnitudes, which Pillow refuses from version 13 on."""
    return tuple(max(1, bits) for bits in level_fn(*level))


@dataclass(frozen=True, kw_only=True)
class FinetuningView:
    """timm's training augmentation: random crop, flip, RandAugment, normalisation, random erasing.

    timm draws from the global generators of Python, numpy and torch, so these are keyed for each image.
    """

    seed: int
    size: int
    min_crop: float = 0.08
    rand_augment: str = ""
    erasing: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size**2 * 4

    @cached_property
    def _transform(self) -> Callable[[Image.Image], torch.Tensor]:
        from timm.data import create_transform

        transform = create_transform(
            self.size,
            is_training=True,
            scale=(self.min_crop, 1.0),
            hflip=0.5,
            color_jitter=None,
            auto_augment=self.rand_augment or None,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
            re_prob=self.erasing,
            re_mode="pixel",
        )
        for policy in transform.transforms:
            for operation in getattr(policy, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
        return transform

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """`images` (3, H, W) float32, normalised."""
        word = keyed_integer(self.seed, "augmentation", epoch, index)
        random.seed(word)
        np.random.seed(word % (1 << 32))  # noqa: NPY002 - timm draws from numpy's global generator
        torch.manual_seed(word)
        return {"images": self._transform(image).numpy()}


def normalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float, on the device it is on; floats pass through.

    Only the first call for a device copies anything to it.
    """
    if images.dtype != torch.uint8:
        return images
    scale, shift = _scale_and_shift(images.device, tuple(mean), tuple(std))
    return images.float().mul_(scale).sub_(shift)


@lru_cache(maxsize=64)
def _scale_and_shift(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 1, 1) each."""
    with torch.inference_mode(False):  # they outlive the context of the first call
        scale = torch.tensor(std, device=device).mul_(255).reciprocal_().view(3, 1, 1)
        shift = torch.tensor(mean, device=device).div_(torch.tensor(std, device=device)).view(3, 1, 1)
    return scale, shift
