"""The view of finetuning: timm's augmentation as far as uint8 goes; the device normalises, and fills in what is erased.

So an image costs a byte a value on its way, instead of four, and a float for each value that is erased.
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
    """timm asks for posterising to no bits at its highest magnitudes, which Pillow refuses from version 13 on."""
    return tuple(max(1, bits) for bits in level_fn(*level))


class _Erased:
    """Stands for an image while timm draws what to erase of it."""

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
class FinetuningView:
    """timm's training augmentation: random crop, flip, RandAugment, random erasing. `erase` fills in what is erased.

    timm draws from the global generators of Python, numpy and torch, so these are keyed for each image.

    Attributes:
        mean: Of the normalisation; RandAugment fills with it.
    """

    seed: int
    size: Size
    min_crop: float = 0.08
    rand_augment: str = ""
    erasing: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN

    ragged: ClassVar[tuple[str, ...]] = ("noise",)  # as long as each image's is; a batch has one after another

    @property
    def bytes_per_image(self) -> int:
        """In the mean at most: the largest box is a third of the image."""
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
        """`images` (3, H, W) uint8; with erasing also `erased`, (4,) int32 box (left, upper, right, lower), of no area
        where nothing is, and its `noise`, (3 * h * w,) float32 of the normalised image.
        """
        word = keyed_integer(self.seed, "augmentation", epoch, index)
        random.seed(word)
        np.random.seed(word % (1 << 32))  # noqa: NPY002 - timm draws from numpy's global generator
        torch.manual_seed(word)
        arrays = {"images": self._transform(image).numpy()}
        if self.erasing:
            erased = _Erased(*height_and_width(self.size))
            self._erasing(erased)
            arrays |= {"erased": np.array(erased.box, dtype=np.int32), "noise": erased.noise.numpy()}
        return arrays


def erase(images: torch.Tensor, boxes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Fills in what `FinetuningView` erased, in place; nothing waits for a device.

    Args:
        images: (B, 3, H, W) float, normalised.
        boxes: (B, 4) integers.
        noise: (m,) float, one image's after another's: rows of a channel, channels of an image.
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
    """`erase` where the boxes are on a device, and asking for them would wait for it."""
    left, upper, right, lower = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    rows = torch.arange(images.shape[2], device=images.device).view(-1, 1)
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= upper) & (rows < lower) & (columns >= left) & (columns < right)
    return images.masked_scatter_(inside, noise)  # in the order of its elements, which is the noise's
