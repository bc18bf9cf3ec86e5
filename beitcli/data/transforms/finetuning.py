"""Transform for finetuning: timm's augmentation as uint8. The device normalizes, and fills in erased boxes.

An image is transferred with one byte per value instead of four, plus one float per erased value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from beitcli.data.transforms.base import IMAGENET_MEAN, Box, Size, height_and_width
from beitcli.runtime.compute.keyed_rng import keyed_integer


def _at_least_one_bit(level_fn: Callable[..., tuple[int, ...]], *level: object) -> tuple[int, ...]:
    """Keeps timm's posterize at one bit or more: timm asks for zero at high magnitudes, which Pillow 13 refuses."""
    return tuple(max(1, bits) for bits in level_fn(*level))


class _Erased:
    """Stand-in for an image that records what timm's RandomErasing draws."""

    dtype = torch.float32

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.box: Box = (0, 0, 0, 0)
        self.noise = torch.empty(0)

    def size(self) -> tuple[int, int, int]:
        return 3, self.height, self.width

    def __setitem__(self, where: tuple[slice, slice, slice], noise: torch.Tensor) -> None:
        _, rows, columns = where
        self.box, self.noise = (columns.start, rows.start, columns.stop, rows.stop), noise.flatten()


@dataclass(frozen=True, kw_only=True)
class FinetuningTransform:
    """timm's training augmentation: random crop, flip, RandAugment, random erasing. `erase` fills in the erased boxes.

    timm draws from the global generators of Python, numpy and torch, so these are seeded for each image.

    Attributes:
        mean: Of the normalization; RandAugment's fill colour.
    """

    seed: int
    size: Size
    min_crop: float = 0.08
    rand_augment: str = ""
    erasing: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN

    ragged: ClassVar[tuple[str, ...]] = ("noise",)  # of variable length; concatenated in a batch

    @property
    def bytes_per_image(self) -> int:
        """Upper bound of the mean: the largest erased box is a third of the image."""
        pixels = math.prod(height_and_width(self.size))
        return 3 * pixels + (round(4 * pixels * self.erasing) + 16 if self.erasing else 0)

    @cached_property
    def _transform(self) -> Callable[[Image.Image], torch.Tensor]:
        from timm.data import create_transform

        height, width = height_and_width(self.size)
        transform = create_transform(
            (height, width),
            is_training=True,
            scale=(self.min_crop, 1.0),
            ratio=(3 / 4 * (width / height), 4 / 3 * (width / height)),
            hflip=0.5,
            color_jitter=None,
            auto_augment=self.rand_augment or None,
            interpolation="bicubic",
            mean=self.mean,
            normalize=False,
        )
        for policy in transform.transforms:
            for operation in getattr(policy, "ops", ()):
                if operation.name.startswith("Posterize"):
                    operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
        return transform

    @cached_property
    def _erasing(self) -> Callable[[_Erased], object]:
        from timm.data.random_erasing import RandomErasing

        return RandomErasing(self.erasing, mode="pixel", device="cpu")

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8.

        With erasing also `erased`, (4,) int32 box (left, upper, right, lower), of no area if nothing is erased, and
        `noise`, (3 * h * w,) float32 of the normalized image.
        """
        word = keyed_integer(self.seed, "augmentation", epoch, index)
        random.seed(word)
        np.random.seed(word % (1 << 32))  # noqa: NPY002 - timm draws from numpy's global generator
        torch.default_generator.manual_seed(word)  # torch.manual_seed takes a millisecond for devices not started
        arrays = {"images": self._transform(image).numpy()}
        if self.erasing:
            erased = _Erased(*height_and_width(self.size))
            self._erasing(erased)
            arrays |= {"erased": np.array(erased.box, dtype=np.int32), "noise": erased.noise.numpy()}
        return arrays


def erase(images: torch.Tensor, boxes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Fills in the erased boxes of `FinetuningTransform`, in place, without synchronizing.

    Args:
        images: (B, 3, H, W) float, normalized.
        boxes: (B, 4) integers.
        noise: (m,) float, concatenated over images, each in the order (channel, row, column).
    """
    if images.device.type != "cpu":
        return masked_erase(images, boxes, noise)
    start = 0
    for image, (left, upper, right, lower) in zip(images, boxes.tolist(), strict=True):
        box = image[:, upper:lower, left:right]
        box.copy_(noise[start : start + box.numel()].view_as(box))
        start += box.numel()
    return images


def masked_erase(images: torch.Tensor, boxes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`erase` for boxes on a device, where reading them would synchronize."""
    left, upper, right, lower = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    rows = torch.arange(images.shape[2], device=images.device).view(-1, 1)
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= upper) & (rows < lower) & (columns >= left) & (columns < right)
    return images.masked_scatter_(inside, noise)  # in the order of elements, as the noise is
