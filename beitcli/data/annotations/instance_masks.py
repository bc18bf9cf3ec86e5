"""Instance masks: polygons, run lengths or bitmaps, rasterized for the image or for a box of the resized image.

pycocotools fills polygons by COCO's own rule. Run-length encodings (RLE) are parsed here, because its C code trusts
their lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from beitcli.data.annotations.coco_ids import whole_number
from beitcli.data.decode import MAX_PIXELS
from beitcli.errors import BadImage

Rle = dict[str, Any]  # {"size": [H, W], "counts": bytes}, as pycocotools has it
_MOST_DIGITS = 7  # of five bits, per number of a compressed RLE: 2^35


class InstanceMask(Protocol):
    """Mask of an object."""

    def mask(self, size: tuple[int, int], scaled: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
        """Rasterizes a box (left, upper, right, lower) of the resized image: (h, w) bool.

        Args:
            size: (H, W) of the image.
            scaled: (H, W) of the resized image.
        """
        ...

    def runs(self, size: tuple[int, int]) -> Rle:
        """Returns the mask of the whole image as RLE, for comparison by pycocotools."""
        ...


@dataclass(frozen=True)
class Polygons:
    """Union of polygons, (n, 2) float32 each, x and y in pixels of the image."""

    rings: tuple[np.ndarray, ...]

    def mask(self, size: tuple[int, int], scaled: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
        left, upper, right, lower = box
        by = np.array([scaled[1] / size[1], scaled[0] / size[0]])
        return decoded(self._filled([ring * by - (left, upper) for ring in self.rings], lower - upper, right - left))

    def runs(self, size: tuple[int, int]) -> Rle:
        return self._filled(list(self.rings), *size)

    def _filled(self, rings: Sequence[np.ndarray], height: int, width: int) -> Rle:
        from pycocotools.mask import frPyObjects, merge

        return merge(frPyObjects([ring.astype(np.float64).ravel().tolist() for ring in rings], height, width))


class WholeMask(ABC):
    """Mask that is made for the whole image, by `whole`, and cut from it."""

    def mask(self, size: tuple[int, int], scaled: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
        left, upper, right, lower = box
        down, across = size[0] / scaled[0], size[1] / scaled[1]
        there = (left * across, upper * down, min(right * across, size[1]), min(lower * down, size[0]))
        picture = Image.fromarray(self.whole(size).astype(np.uint8))
        return np.asarray(picture.resize((right - left, lower - upper), Image.Resampling.NEAREST, there)) > 0

    def runs(self, size: tuple[int, int]) -> Rle:
        return encoded(self.whole(size))

    @abstractmethod
    def whole(self, size: tuple[int, int]) -> np.ndarray:
        """Returns the mask, (H, W) bool."""


@dataclass(frozen=True)
class Bitmap(WholeMask):
    """Mask of the whole image, (H, W) bool, packed to eight pixels per byte."""

    packed: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Bitmap:
        return cls(np.packbits(mask))

    def whole(self, size: tuple[int, int]) -> np.ndarray:
        return np.unpackbits(self.packed, count=size[0] * size[1]).reshape(size).astype(bool)


@dataclass(frozen=True)
class Runs(WholeMask):
    """Run lengths, (n,) int32, alternately outside and inside the object, down the columns.

    They are kept as they are: some bytes of a file may stand for an image of megapixels.
    """

    lengths: np.ndarray

    def whole(self, size: tuple[int, int]) -> np.ndarray:
        return _laid_out(self.lengths, size)


def encoded(mask: np.ndarray) -> Rle:
    """Encodes (H, W) bool as RLE."""
    from pycocotools.mask import encode

    return encode(np.asfortranarray(mask, dtype=np.uint8))


def decoded(runs: Rle) -> np.ndarray:
    """Decodes the RLE of `encoded` or `InstanceMask.runs` to (H, W) bool; that of pycocotools warns with numpy 2."""
    lengths = _uncompressed(runs["counts"].decode())
    assert lengths is not None
    return _laid_out(lengths, (runs["size"][0], runs["size"][1]))


def area_of(runs: Rle) -> float:
    """Returns the number of pixels of the mask."""
    from pycocotools.mask import area

    return float(area(runs))


def outline_of(segmentation: Any, size: tuple[int, int], margin: float) -> InstanceMask:
    """Parses the segmentation of a COCO annotation.

    Args:
        segmentation: Polygons, [[x0, y0, x1, y1, ...], ...], or RLE, {"size": [H, W], "counts": numbers or text}.
        margin: Pixels by which polygons may exceed the image.

    Raises:
        BadImage: It is neither, does not fit the image, or the image has more than MAX_PIXELS.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage(f"its image of {size[1]} x {size[0]} pixels has more than the {MAX_PIXELS:,} allowed")
    if isinstance(segmentation, dict):
        return Runs(_run_lengths(segmentation, size))
    if not isinstance(segmentation, list) or not segmentation:
        raise BadImage("it has no segmentation" if not segmentation else "its segmentation is no list of polygons")
    rings = []
    for polygon in segmentation:
        numbers = polygon if isinstance(polygon, list) else []
        if len(numbers) < 6 or len(numbers) % 2 or not all(map(_is_place, numbers)):
            raise BadImage("its segmentation is no list of polygons of three points and more")
        ring = np.array(numbers, np.float64).reshape(-1, 2)
        if (ring < -margin).any() or (ring > np.array([size[1], size[0]]) + margin).any():
            raise BadImage(f"its segmentation reaches beyond the image of {size[1]} x {size[0]} pixels")
        rings.append(ring.astype(np.float32))
    return Polygons(tuple(rings))


def _is_place(number: Any) -> bool:
    """Whether a number is finite and plausible as a pixel coordinate."""
    return type(number) in (int, float) and abs(number) < 1e12


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Returns the lengths of an RLE that fits the image, (n,) int32. Raises BadImage."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        raise BadImage(f"its segmentation is of another size than the image of {size[1]} x {size[0]} pixels")
    lengths = _uncompressed(counts) if isinstance(counts, str) else counts
    if isinstance(lengths, list) and any(isinstance(length, float) for length in lengths):
        lengths = [whole_number(length) for length in lengths]
    most = size[0] * size[1]
    if not isinstance(lengths, list) or not all(type(length) is int and 0 <= length <= most for length in lengths):
        raise BadImage("its segmentation holds no runs of pixels")
    if sum(lengths) != most:
        raise BadImage(f"its segmentation has runs of {sum(lengths)} pixels, the image {most}")
    return np.array(lengths, np.int32)


def _laid_out(lengths: list[int] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Converts alternating runs, outside and inside the object, to (H, W) bool."""
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(size[::-1]).T


def _uncompressed(text: str) -> list[int] | None:
    """Decodes COCO's compressed RLE: digits of five bits from 48 up; from the fourth number on, differences."""
    lengths: list[int] = []
    number, digits = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or digits == _MOST_DIGITS:
            return None
        number |= (digit & 31) << (5 * digits)
        digits += 1
        if digit & 32:
            continue
        if digit & 16:
            number -= 1 << (5 * digits)
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number, digits = 0, 0
    return None if digits else lengths
