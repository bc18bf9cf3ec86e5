"""Draws the boxes, classes, scores and masks of detected objects on an image, one colour per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from beitcli.pictures.canvas import elided
from beitcli.pictures.lettering import length, write
from beitcli.pictures.palette import class_colours, ink_on
from beitcli.pictures.panels import WHITE, Colour, font_of

_OPACITY = 0.5
_SHARE = 1 / 200  # line width, as a fraction of the shorter side
_TEXT = 1 / 28  # font size, likewise
_LEAST_TEXT = 14  # minimum font size, in pixels
_LEAST_SIDE = 360  # shorter side in pixels, to which smaller images are enlarged by a whole factor

Rectangle = tuple[int, int, int, int]  # left, upper, right, lower; the last two lie outside of it


def colour_of(label: int) -> Colour:
    """Returns the RGB colour of a class: that of its number in label maps."""
    red, green, blue = class_colours()[label % 255].tolist()
    return red, green, blue


def enlargement(height: int, width: int) -> int:
    """Returns the whole factor by which an image is enlarged, so that names are legible on it."""
    return max(1, -(-_LEAST_SIDE // min(height, width)))


def line_width(height: int, width: int) -> int:
    """Returns the line width of a box on a picture of that size, in pixels."""
    return max(2, round(min(height, width) * _SHARE))


def draw_bounding_boxes(
    pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None, names: Sequence[str]
) -> Image.Image:
    """Draws boxes with class and score on an image, the highest score on top.

    Names lie beside their box within the picture, and where possible on no other name. Images of less than 360 pixels
    a side are enlarged by a whole factor; without objects too, so that pictures of one size stay so.

    Args:
        pixels: (H, W, 3) uint8.
        boxes: (n, 4), x0 y0 x1 y1 in pixels; the outermost pixels of a frame lie inside its box.
        labels: (n,) integers.
        scores: (n,), in descending order; None for objects that are given, by their names alone.
    """
    height, width = pixels.shape[:2]
    factor = enlargement(height, width)
    picture = Image.fromarray(pixels)
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    thick = line_width(picture.height, picture.width)
    frames = []
    for box in (boxes * factor).tolist():
        left, upper, right, lower = (round(edge) for edge in box)
        frames.append((left, upper, max(left, right - 1), max(upper, lower - 1)))
    for frame, label in reversed(list(zip(frames, labels.tolist(), strict=True))):
        inner = (frame[0] + thick, frame[1] + thick, frame[2] - thick, frame[3] - thick)
        if inner[0] < inner[2] and inner[1] < inner[3]:
            draw.rectangle(inner, outline=WHITE)  # the frame is seen on a ground of its own colour
        draw.rectangle(frame, outline=colour_of(label), width=thick)
    taken: list[Rectangle] = []
    shares = [""] * len(labels) if scores is None else [f" {score:.0%}" for score in scores.tolist()]
    for frame, label, share in zip(frames, labels.tolist(), shares, strict=True):
        taken.append(_draw_name(draw, frame, f"{names[label]}{share}", colour_of(label), taken))
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


def _draw_name(
    draw: ImageDraw.ImageDraw, frame: Rectangle, text: str, colour: Colour, taken: Sequence[Rectangle]
) -> Rectangle:
    """Writes a name on a ground of its colour; returns the ground."""
    width, height = draw.im.size
    font = font_of(max(_LEAST_TEXT, min(height, width) * _TEXT))
    text = elided(text, font, width - 8)
    size = (round(length(text, font)) + 8, round(1.45 * getattr(font, "size", _LEAST_TEXT)))
    ground = place_name(frame, size, (width, height), taken)
    draw.rectangle((ground[0], ground[1], ground[2] - 1, ground[3] - 1), colour)
    write(draw, (ground[0] + 4, (ground[1] + ground[3]) / 2), text, ink_on(colour), font, "lm")
    return ground


def place_name(
    frame: Rectangle, size: tuple[int, int], picture: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Returns the place of a name of `size` (width, height) at a frame, all of it within the picture.

    Of the places above, in and below the frame, it is the first that covers no name of `taken`, or else the least of
    them.
    """
    best, least = None, 0
    for left, top in _places(frame, size):
        left = max(0, min(left, picture[0] - size[0]))
        top = max(0, min(top, picture[1] - size[1]))
        ground = (left, top, left + size[0], top + size[1])
        covered = sum(_common(ground, other) for other in taken)
        if best is None or covered < least:
            best, least = ground, covered
        if not covered:
            break
    assert best is not None
    return best


def _places(frame: Rectangle, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yields upper left corners: above, below, inside at the top and at the bottom, each from left and right."""
    left, upper, right, lower = frame
    for top in (upper - size[1], lower + 1, upper, lower + 1 - size[1]):
        for across in (left, right + 1 - size[0]):
            yield across, top
    for step in range(1, 9):
        yield left, upper + step * size[1]


def _common(one: Rectangle, other: Rectangle) -> int:
    """Returns the area in common, in pixels."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, across) * max(0, down)
