"""Transforms for pretraining, for tokenizers and for evaluation: crop, resize, flip, colour jitter, normalization.

Pretraining follows the paper's order (as in the release): color jitter, flip, then ONE crop box resized twice, bicubic
for the backbone and Lanczos (in BEiT v2 bicubic) for the tokenizer, so that a visual token and its patch show the same
pixels. Every draw is keyed by (seed, purpose, epoch, image).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance

from beitcli.config.eval_crop import INTERPOLATIONS, RELEASED_CROP, CropMode, EvalCrop
from beitcli.config.normalization import IMAGENET, Normalization
from beitcli.data.transforms.center import Size as Size
from beitcli.data.transforms.center import center_box as center_box
from beitcli.data.transforms.center import fit_bordered, fit_squashed
from beitcli.data.transforms.center import fit_center as fit_center
from beitcli.data.transforms.center import height_and_width as height_and_width
from beitcli.data.transforms.center import to_array as to_array
from beitcli.runtime.compute.keyed_rng import keyed_generator

IMAGENET_MEAN, IMAGENET_STD = IMAGENET
Box = tuple[int, int, int, int]
BRIGHTNESS, CONTRAST, SATURATION = range(3)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def draw_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    min_area: float = 0.08,
    max_aspect: float = 4 / 3,
    target_aspect: float = 1.0,
) -> Box:
    """Draws (left, upper, right, lower): area uniform in [min_area, 1], aspect log-uniform; centred after ten misfits.

    Args:
        max_aspect: Maximum ratio between the box's width / height and `target_aspect`, either way.
        target_aspect: Width / height that the box is resized to.
    """
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1.0)
        aspect = target_aspect * math.exp(rng.uniform(-math.log(max_aspect), math.log(max_aspect)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left = int(rng.integers(width - across + 1))
            upper = int(rng.integers(height - down + 1))
            return left, upper, left + across, upper + down
    across = min(width, max(1, round(height * max_aspect * target_aspect)))
    down = min(height, max(1, round(width * max_aspect / target_aspect)))
    left, upper = (width - across) // 2, (height - down) // 2
    return left, upper, left + across, upper + down


def draw_jitter(strength: float, rng: np.random.Generator) -> list[tuple[int, float]]:
    """Draws BRIGHTNESS, CONTRAST and SATURATION in random order, each with a factor uniform in 1 +- strength."""
    factors = rng.uniform(max(0.0, 1 - strength), 1 + strength, size=3)
    return [(int(which), float(factors[which])) for which in rng.permutation(3)]


def jitter_colors(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Applies the brightness, contrast and saturation of `draw_jitter` by Pillow."""
    for which, factor in draw_jitter(strength, rng):
        image = _ENHANCERS[which](image).enhance(factor)
    return image


TokenFilter = Literal["lanczos", "bicubic"]
FILTERS: dict[str, int] = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class TwoCropTransform:
    """Base class of the pretraining transforms: one crop box at two sizes.

    Attributes:
        image_size: Of the backbone's image.
        token_size: Of the tokenizer's image, with the same aspect ratio; None without a tokenizer.
        token_filter: Filter that resizes the tokenizer's image.
    """

    seed: int
    image_size: Size
    token_size: Size | None
    color_jitter: float = 0.4
    min_crop: float = 0.08
    token_filter: TokenFilter = "lanczos"

    @property
    def bytes_per_image(self) -> int:
        sizes = (self.image_size,) if self.token_size is None else (self.image_size, self.token_size)
        return sum(3 * math.prod(height_and_width(size)) for size in sizes)


@dataclass(frozen=True, kw_only=True)
class PretrainingTransform(TwoCropTransform):
    """Reference transform for pretraining, by Pillow in the release's order: jitter of the whole image, flip, crop."""

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) and, with a tokenizer, `token_images` (3, h, w); uint8."""
        rng = keyed_generator(self.seed, "view", epoch, index)
        if self.color_jitter > 0:
            image = jitter_colors(image, self.color_jitter, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        height, width = height_and_width(self.image_size)
        box = draw_crop_box(*image.size, rng, self.min_crop, target_aspect=width / height)
        views = {"images": to_array(image.resize((width, height), Image.Resampling.BICUBIC, box))}
        if self.token_size is not None:
            height, width = height_and_width(self.token_size)
            views["token_images"] = to_array(image.resize((width, height), FILTERS[self.token_filter], box))
        return views


@dataclass(frozen=True, kw_only=True)
class TokenizerTransform:
    """Transform for tokenizer training: random crops of at least half the area, flipped at random."""

    seed: int
    size: int
    min_crop: float = 0.5

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size**2

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8."""
        rng = keyed_generator(self.seed, "view", epoch, index)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        box = draw_crop_box(*image.size, rng, self.min_crop)
        return {"images": to_array(image.resize((self.size, self.size), Image.Resampling.LANCZOS, box))}


@dataclass(frozen=True, kw_only=True)
class CropFlipTransform:
    """Training transform of linear probes: a random crop, by bilinear resizing, flipped at random.

    Box, flip and filter are those of torchvision's RandomResizedCrop and RandomHorizontalFlip, as in the release.

    Attributes:
        epoch: Added to the loader's, which is 0 in an ordered pass.
    """

    seed: int
    size: Size
    min_crop: float = 0.08
    epoch: int = 0

    @property
    def bytes_per_image(self) -> int:
        return 3 * math.prod(height_and_width(self.size))

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8."""
        rng = keyed_generator(self.seed, "probe view", self.epoch + epoch, index)
        height, width = height_and_width(self.size)
        box = draw_crop_box(*image.size, rng, self.min_crop, target_aspect=width / height)
        view = image.crop(box).resize((width, height), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return {"images": to_array(view)}


@dataclass(frozen=True, kw_only=True)
class CenterTransform:
    """Evaluation transform, without randomness: a center crop, or as `crop_mode` says (`config/eval_crop.py`).

    Attributes:
        crop_pct: Side of the crop / resized side: 0.875 below 384 pixels in classification, else 1.
        fill: Colour of the border of `border`, 0-255.
    """

    size: Size
    crop_pct: float = 1.0
    filter: int = Image.Resampling.BICUBIC
    crop_mode: CropMode = "center"
    fill: tuple[int, ...] = (0, 0, 0)
    rounds_down: bool = False

    @property
    def bytes_per_image(self) -> int:
        return 3 * math.prod(height_and_width(self.size))

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8."""
        if self.crop_mode == "center":
            height, width = height_and_width(self.size)
            rounding = {"rounds_down": self.rounds_down, "as_timm": height != width}
            return {"images": to_array(fit_center(image, self.size, self.crop_pct, self.filter, **rounding))}
        resized = EvalCrop(crop_pct=self.crop_pct).resized(height_and_width(self.size))
        if self.crop_mode == "squash":
            return {"images": to_array(fit_squashed(image, self.size, resized, self.filter, self.rounds_down))}
        return {"images": to_array(fit_bordered(image, self.size, resized, self.filter, self.fill))}


@dataclass(frozen=True, kw_only=True)
class CenterTwoCropTransform:
    """Center crop at the sizes of pretraining, without randomness.

    Attributes:
        image_size: Of the backbone's image.
        token_size: Of the tokenizer's image, with the same aspect ratio.
        token_filter: Filter that resizes the tokenizer's image.
    """

    image_size: Size
    token_size: Size
    token_filter: TokenFilter = "lanczos"

    @property
    def bytes_per_image(self) -> int:
        return sum(3 * math.prod(height_and_width(size)) for size in (self.image_size, self.token_size))

    def __call__(self, image: Image.Image, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) and `token_images` (3, h, w), uint8."""
        tokens = fit_center(image, self.token_size, filter=FILTERS[self.token_filter])
        return {"images": to_array(fit_center(image, self.image_size)), "token_images": to_array(tokens)}


def evaluation_view(
    size: Size, crop: EvalCrop = RELEASED_CROP, normalization: Normalization = IMAGENET
) -> CenterTransform:
    """Returns the transform for evaluation, by default the release's.

    Args:
        normalization: Its mean is the colour of a border.
    """
    return CenterTransform(
        size=size,
        crop_pct=crop.pct(height_and_width(size)),
        filter=INTERPOLATIONS.index(crop.interpolation),
        crop_mode=crop.crop_mode,
        fill=tuple(round(255 * channel) for channel in normalization[0]) if crop.crop_mode == "border" else (0, 0, 0),
        rounds_down=crop.rounds_down,
    )


def normalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Normalizes (B, 3, H, W) uint8 to float, on its device; floats are returned unchanged.

    Only the first call for a device copies constants to it.
    """
    if images.dtype != torch.uint8:
        return images
    scale, shift = _scale_and_shift(images.device, tuple(mean), tuple(std))
    return images.float().mul_(scale).sub_(shift)


def denormalize(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Inverse of `normalize`: (B, 3, H, W), clipped to [0, 1]."""
    scale, shift = _scale_and_shift(images.device, tuple(mean), tuple(std))
    return images.add(shift).div(scale).div(255).clamp(0, 1)


@lru_cache(maxsize=64)
def _scale_and_shift(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Constants of `normalize`, (3, 1, 1) each."""
    with torch.inference_mode(False):  # cached for callers outside inference mode
        scale = torch.tensor(std, device=device).mul_(255).reciprocal_().view(3, 1, 1)
        shift = torch.tensor(mean, device=device).div_(torch.tensor(std, device=device)).view(3, 1, 1)
    return scale, shift
