"""Draws the boxes, classes, scores and masks of detected objects on an image, one colour per class."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GOLDEN = 0.6180339887
_OPACITY = 0.5
_SHARE = 1 / 200  # line width, as a fraction of the shorter side
_TEXT = 1 / 28  # font size, likewise
_LEAST_TEXT = 9  # minimum font size, in pixels
_READABLE = 128  # shorter side in pixels, below which names would hide the objects


def colour_of(label: int) -> tuple[int, int, int]:
    """Returns a bright RGB colour. Hues advance by the golden ratio, so that the first few classes differ clearly."""
    red, green, blue = hsv_to_rgb(label * _GOLDEN % 1, 0.55 + 0.4 * (label % 2), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def line_width(height: int, width: int) -> int:
    """Returns the line width of a box on an image of that size, in pixels."""
    shorter = min(height, width)
    return max(1 if shorter < _READABLE else 2, round(shorter * _SHARE))


def draw_bounding_boxes(
    pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """Draws boxes on an image, the highest score on top; without names if a side is below 128 pixels.

    Args:
        pixels: (H, W, 3) uint8.
        boxes: (n, 4), x0 y0 x1 y1 in pixels; the outermost pixels of a frame lie inside its box.
        labels: (n,) integers.
        scores: (n,), in descending order.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    height, width = pixels.shape[:2]
    font = ImageFont.load_default(max(_LEAST_TEXT, min(height, width) * _TEXT))
    for box, label, score in reversed(list(zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True))):
        left, upper, right, lower = (round(edge) for edge in box)
        right, lower = max(left, right - 1), max(upper, lower - 1)
        draw.rectangle((left, upper, right, lower), outline=colour_of(label), width=line_width(height, width))
        if min(height, width) >= _READABLE:
            _name(draw, (left, upper), f"{names[label]} {score:.2f}", colour_of(label), font)
    return picture


def draw_segmentation_masks(pixels: np.ndarray, masks: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Tints objects in an (H, W, 3) uint8 image by class, the highest score on top; returns a copy.

    Args:
        masks: (H, W) bool each, in descending order of score.
        labels: (n,) integers.
    """
    tinted = pixels.copy()
    for mask, label in reversed(list(zip(masks, labels.tolist(), strict=True))):
        mixed = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(colour_of(label))
        tinted[mask] = np.rint(mixed).astype(np.uint8)
    return tinted


def _name(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Writes the name above the box's corner, or inside the box if there is no room above."""
    left, upper, right, lower = draw.textbbox((0, 0), text, font=font)
    high = int(lower - upper) + 4
    top = corner[1] - high if corner[1] >= high else corner[1]
    draw.rectangle((corner[0], top, corner[0] + int(right - left) + 4, top + high), fill=colour)
    bright = sum(share * level for share, level in zip((0.299, 0.587, 0.114), colour, strict=True)) > 140
    draw.text((corner[0] + 2 - left, top + 2 - upper), text, fill="black" if bright else "white", font=font)
