"""Transforms for segmentation: crops of an image and its label map (settings of mmseg and the release).

Training: resize so that the shorter side is `short_side` times a factor in [0.5, 2], a random crop in which one class
covers 75% at most (10 attempts), flip, photometric distortion; padding has the mean colour and the ignored label.
Evaluation: the same resize without randomness, label maps unchanged. Draws are keyed by (seed, epoch, image).

Only the crop is resized, images bilinear, label maps nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from beitcli.config.normalization import IMAGENET
from beitcli.data.annotations.label_maps import IGNORED
from beitcli.runtime.compute.keyed_rng import keyed_generator

_TRIES = 10
_LONGEST = 4  # maximum of the longer side / `short_side`, as 2048 / 512 in the release
_BRIGHTNESS, _LEAST, _MOST, _HUE = 32, 0.5, 1.5, 18 / 180 * 256
Box = tuple[int, int, int, int]


def resized_shape(shape: tuple[int, int], short_side: float) -> tuple[int, int]:
    """Returns (H, W) with the shorter side at `short_side`, or the longer one at four times that; 0 keeps the shape."""
    if not short_side:
        return shape
    scale = min(short_side / min(shape), _LONGEST * short_side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


@dataclass(frozen=True, kw_only=True)
class SegmentationTransform:
    """Transform for segmenter training.

    Attributes:
        size: (H, W) of the crop.
        short_side: Of the resized image, in pixels, before the random factor; 0 for the image's own size.
        factors: Minimum and maximum random factor.
        largest_share: Maximum fraction of the crop's labelled pixels in one class (0-1); 1 accepts the first crop.
        distorts: Whether to vary brightness, contrast, saturation and hue.
    """

    wants_labels: ClassVar[bool] = True
    seed: int
    size: tuple[int, int]
    short_side: int
    factors: tuple[float, float] = (0.5, 2.0)
    largest_share: float = 0.75
    distorts: bool = True
    mean: tuple[float, ...] = IMAGENET[0]

    @property
    def bytes_per_image(self) -> int:
        return 4 * self.size[0] * self.size[1]

    def __call__(self, seen: tuple[np.ndarray, np.ndarray], epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) and `targets` (H, W), uint8.

        Args:
            seen: (h, w, 3) pixels and (h, w) labels, uint8.
        """
        pixels, labels = seen
        rng = keyed_generator(self.seed, "segmentation", epoch, index)
        factor = rng.uniform(*self.factors)
        seen_size = (labels.shape[0], labels.shape[1])
        shape = resized_shape(seen_size, (self.short_side or min(seen_size)) * factor)
        box, targets = self._crop(labels, shape, rng)
        image = _cut(pixels, shape, box, Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image, targets = image[:, ::-1], targets[:, ::-1]
        if self.distorts:
            image = distort(image, rng)
        height, width = targets.shape
        images = np.empty((3, *self.size), np.uint8)
        images[:] = np.rint(np.multiply(self.mean, 255)).astype(np.uint8)[:, None, None]
        images[:, :height, :width] = image.transpose(2, 0, 1)
        padded = np.full(self.size, IGNORED, np.uint8)
        padded[:height, :width] = targets
        return {"images": images, "targets": padded}

    def _crop(self, labels: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Box, np.ndarray]:
        """Draws a box of the resized image, (left, upper, right, lower), and returns it with its labels."""
        height, width = (min(side, target) for side, target in zip(shape, self.size, strict=True))
        for attempt in range(_TRIES):
            upper = int(rng.integers(shape[0] - height + 1))
            left = int(rng.integers(shape[1] - width + 1))
            box = (left, upper, left + width, upper + height)
            targets = _cut(labels, shape, box, Image.Resampling.NEAREST)
            if attempt == _TRIES - 1 or self.largest_share >= 1:
                break
            counts = np.bincount(targets.ravel(), minlength=256)[:IGNORED]
            if np.count_nonzero(counts) > 1 and counts.max() < self.largest_share * counts.sum():
                break
        return box, targets


def _cut(array: np.ndarray, shape: tuple[int, int], box: Box, filter: Image.Resampling) -> np.ndarray:
    """Crops a box of the array resized to `shape`."""
    left, upper, right, lower = box
    down, across = array.shape[0] / shape[0], array.shape[1] / shape[1]
    there = (
        left * across,
        upper * down,
        min(right * across, array.shape[1]),
        min(lower * down, array.shape[0]),
    )
    return np.asarray(Image.fromarray(array).resize((right - left, lower - upper), filter, there))


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """mmseg's photometric distortion, each part with probability 0.5.

    Brightness up to 32 of 255, contrast and saturation times 0.5 to 1.5, hue up to 18 of 180 degrees; contrast before
    or after the other two.

    Args:
        image: (H, W, 3) uint8.
    """
    does = rng.random(4) < 0.5
    brightness, hue = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS), rng.uniform(-_HUE, _HUE)
    contrast, saturation = rng.uniform(_LEAST, _MOST, 2)
    contrast_first = rng.random() < 0.5
    if does[0]:
        image = _scaled(image, 1.0, brightness)
    if does[1] and contrast_first:
        image = _scaled(image, contrast)
    if does[2] or does[3]:
        channels = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
        if does[2]:
            channels[..., 1] = _scaled(channels[..., 1], saturation)
        if does[3]:
            channels[..., 0] += np.uint8(round(hue) % 256)  # hue wraps around
        image = np.asarray(Image.fromarray(channels, "HSV").convert("RGB"))
    if does[1] and not contrast_first:
        image = _scaled(image, contrast)
    return image


def _scaled(levels: np.ndarray, gain: float, offset: float = 0.0) -> np.ndarray:
    table = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
    return table[levels]


@dataclass(frozen=True, kw_only=True)
class SegmentationEvalTransform:
    """Transform for segmenter evaluation: the whole image, once per scale.

    Attributes:
        short_side: Of the image at scale 1, in pixels; 0 for its own size.
        scales: Factors of the size.
        least: (H, W) that no scale goes below, in pixels; over several scales the release's is the window.
    """

    wants_pixels: ClassVar[bool] = True
    short_side: int
    scales: tuple[float, ...] = (1.0,)
    least: tuple[int, int] = (0, 0)

    def __call__(self, pixels: np.ndarray, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """Returns `images_0` (3, h, w) uint8, and so on, one per scale; `size` (2,), the original (H, W)."""
        height, width = pixels.shape[:2]
        views = {"size": np.array((height, width))}
        image = Image.fromarray(pixels)
        for number, scale in enumerate(self.scales):
            scaled = (self.short_side or min(height, width)) * scale
            needed = min(height, width) * max(self.least[0] / height, self.least[1] / width)
            short_side = max(scaled, needed)
            shape = resized_shape((height, width), short_side)
            resized = image if shape == (height, width) else image.resize(shape[::-1], Image.Resampling.BILINEAR)
            views[f"images_{number}"] = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
        return views


@dataclass(frozen=True, kw_only=True)
class LabelledSegmentationTransform(SegmentationEvalTransform):
    """`SegmentationEvalTransform` with the label map, `targets` (H, W) uint8, at the original size."""

    wants_pixels: ClassVar[bool] = False
    wants_labels: ClassVar[bool] = True

    def __call__(  # type: ignore[override]
        self, seen: tuple[np.ndarray, np.ndarray], epoch: int = 0, index: int = 0
    ) -> dict[str, np.ndarray]:
        return super().__call__(seen[0]) | {"targets": seen[1]}
