"""Transforms for detection: large-scale jitter of an image and its boxes, as in ViTDet (arXiv 2203.16527).

Training: the image is resized to just fit into `size`, times a random factor. A larger one is cropped at random, a
smaller one is padded with the mean colour on the right and below. It is flipped with probability 0.5. Boxes follow, and
are clipped to the crop. Evaluation: the same without randomness. Draws are keyed by (seed, epoch, image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from beitcli.config.normalization import IMAGENET
from beitcli.data.annotations.boxes import BoxLabels
from beitcli.runtime.compute.keyed_rng import keyed_generator

_LEAST_SIDE = 1.0  # minimum side of a clipped box in pixels; smaller boxes are dropped
_LEAST_SHARE = 0.1  # minimum fraction of its area
Part = tuple[int, int, int, int]  # left, upper, right, lower


def fitted_shape(shape: tuple[int, int], size: tuple[int, int], factor: float = 1.0) -> tuple[int, int]:
    """Returns (h, w) of an image that just fits into `size` (H, W), times `factor`; at least one pixel."""
    scale = min(size[0] / shape[0], size[1] / shape[1]) * factor
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def padded(image: np.ndarray, size: tuple[int, int], mean: tuple[float, ...]) -> np.ndarray:
    """Pads (h, w, 3) uint8 to (3, H, W) with the mean colour on the right and below."""
    images = np.empty((3, *size), np.uint8)
    images[:] = np.rint(np.multiply(mean, 255)).astype(np.uint8)[:, None, None]
    images[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return images


@dataclass(frozen=True, kw_only=True)
class DetectionTransform:
    """Transform for detector training.

    Attributes:
        size: (H, W) of the detector's input.
        most: Maximum number of boxes of an image in the data; boxes and classes are padded to it, so that those of a
            batch are one array.
        factors: Minimum and maximum factor of the resize.
        outlines: Whether to return instance masks.
        mean_boxes: Boxes of an image on average, for the size of its masks; None takes `most`.
    """

    wants_labels: ClassVar[bool] = True
    ragged: ClassVar[tuple[str, ...]] = ("masks",)  # of as many rows as boxes: padded, a crowded image would set them
    seed: int
    size: tuple[int, int]
    most: int
    factors: tuple[float, float] = (0.1, 2.0)
    outlines: bool = False
    mean: tuple[float, ...] = IMAGENET[0]
    mean_boxes: float | None = None

    @property
    def bytes_per_image(self) -> int:
        pixels = self.size[0] * self.size[1]
        boxes = self.most if self.mean_boxes is None else self.mean_boxes
        return 3 * pixels + (int(boxes * pixels) // 8 if self.outlines else 0)

    def __call__(self, seen: tuple[np.ndarray, BoxLabels], epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8, `boxes` (most, 4) float32 and `classes` (most,) int64, -1 for padding.

        With `outlines` also `masks` (n, H * W / 8) uint8 of the n boxes, eight pixels per byte.

        Args:
            seen: (h, w, 3) uint8 pixels, and their annotations.
        """
        pixels, marked = seen
        rng = keyed_generator(self.seed, "detection", epoch, index)
        shape = fitted_shape(marked.size, self.size, rng.uniform(*self.factors))
        height, width = (min(side, target) for side, target in zip(shape, self.size, strict=True))
        upper, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
        part = (left, upper, left + width, upper + height)
        image = _cut(pixels, shape, part)
        learned = ~marked.crowd
        boxes, labels = marked.boxes[learned], marked.labels[learned]
        boxes, kept = moved(boxes, (shape[0] / marked.size[0], shape[1] / marked.size[1]), (upper, left), image.shape)
        mirrored = rng.random() < 0.5
        if mirrored:
            image = image[:, ::-1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        places = np.zeros((self.most, 4), np.float32)
        classes = np.full(self.most, -1, np.int64)
        number = np.count_nonzero(kept)
        places[:number], classes[:number] = boxes[kept], labels[kept]
        seen_here = {"images": padded(image, self.size, self.mean), "boxes": places, "classes": classes}
        if self.outlines:
            rows = np.flatnonzero(learned)[kept].tolist()
            seen_here["masks"] = self._masks(marked, rows, shape, part, mirrored)
        return seen_here

    def _masks(
        self,
        marked: BoxLabels,
        rows: list[int],
        shape: tuple[int, int],
        part: Part,
        mirrored: bool,
    ) -> np.ndarray:
        """Returns the packed masks of the objects `rows`, in that order."""
        assert marked.outlines is not None
        packed = np.zeros((len(rows), -(-self.size[0] * self.size[1] // 8)), np.uint8)
        for place, row in enumerate(rows):
            mask = marked.outlines[row].mask(marked.size, shape, part)
            whole = np.zeros(self.size, bool)
            whole[: mask.shape[0], : mask.shape[1]] = mask[:, ::-1] if mirrored else mask
            packed[place] = np.packbits(whole)
        return packed


def moved(
    boxes: np.ndarray, scale: tuple[float, float], corner: tuple[int, int], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Maps boxes (n, 4) to a crop of the resized image; also returns which of them are still visible, (n,) bool.

    Args:
        scale: Of the resize, vertically and horizontally.
        corner: (upper, left) of the crop, in resized pixels.
        shape: (h, w, ...) of the crop.
    """
    by = np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)
    whole = boxes * by - np.array([corner[1], corner[0], corner[1], corner[0]], np.float32)
    most = np.array([shape[1], shape[0], shape[1], shape[0]], np.float32)
    cut = np.clip(whole, 0, most).astype(np.float32)
    sides, before = cut[:, 2:] - cut[:, :2], whole[:, 2:] - whole[:, :2]
    enough = sides.prod(axis=1) >= _LEAST_SHARE * before.prod(axis=1)
    return cut, (sides >= _LEAST_SIDE).all(axis=1) & enough


def _cut(pixels: np.ndarray, shape: tuple[int, int], box: Part) -> np.ndarray:
    """Crops a box (left, upper, right, lower) of the image resized to `shape`, bilinear."""
    left, upper, right, lower = box
    down, across = pixels.shape[0] / shape[0], pixels.shape[1] / shape[1]
    there = (left * across, upper * down, min(right * across, pixels.shape[1]), min(lower * down, pixels.shape[0]))
    return np.asarray(Image.fromarray(pixels).resize((right - left, lower - upper), Image.Resampling.BILINEAR, there))


@dataclass(frozen=True, kw_only=True)
class DetectionEvalTransform:
    """Transform for detector evaluation: resized to fit into `size`, padded.

    Attributes:
        size: (H, W) of the detector's input.
    """

    wants_pixels: ClassVar[bool] = True
    size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET[0]

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size[0] * self.size[1]

    def __call__(self, pixels: np.ndarray, epoch: int = 0, index: int = 0) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) uint8; `content`, (h, w) of the image in it; `size`, its original (H, W)."""
        own = (pixels.shape[0], pixels.shape[1])
        shape = fitted_shape(own, self.size)
        image = _cut(pixels, shape, (0, 0, shape[1], shape[0]))
        return {
            "images": padded(image, self.size, self.mean),
            "content": np.array(shape),
            "size": np.array(own),
        }


@dataclass(frozen=True, kw_only=True)
class LabelledDetectionTransform(DetectionEvalTransform):
    """`DetectionEvalTransform` for images with boxes, whose size must be that of their annotations."""

    wants_pixels: ClassVar[bool] = False
    wants_labels: ClassVar[bool] = True

    def __call__(  # type: ignore[override]
        self, seen: tuple[np.ndarray, BoxLabels], epoch: int = 0, index: int = 0
    ) -> dict[str, np.ndarray]:
        return super().__call__(seen[0])
