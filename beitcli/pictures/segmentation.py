"""Draws label maps: indexed PNG, and an overlay on the image with edges and a legend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from beitcli.pictures.canvas import Key, legend, stacked, stripes
from beitcli.pictures.palette import class_colours
from beitcli.pictures.panels import Colour, caption_size

_OPACITY = 0.5
_NO_CLASS = 255
_LEAST_WIDTH = 640  # of an overlay in pixels: smaller images are enlarged by a whole factor
_MOST_KEYS = 40  # classes that the legend names
_BACKGROUND = ("background", "bg", "void", "other", "unlabelled", "unlabeled", "none", "0")


def indexed(values: np.ndarray, has_background: bool = True) -> Image.Image:
    """Converts (H, W) uint8 to a palette image that keeps these values.

    Args:
        has_background: Whether 0 is black, and no class with a colour of its own.
    """
    colours = class_colours().copy()
    if has_background:
        colours[0] = 0
    picture = Image.fromarray(values)
    picture.putpalette(colours.ravel().tolist())
    return picture


def is_background(name: str | None) -> bool:
    """Whether the class of value 0 stands for everything else, by its name; so does a value without a class."""
    return name is None or name.strip().lower() in _BACKGROUND


def overlay(pixels: np.ndarray, values: np.ndarray, names: Mapping[int, str]) -> Image.Image:
    """Draws the classes over the image, in the colours of `indexed`, with solid edges and a legend with shares below.

    Value 0 leaves the image as it is if it is a background. What has no class (255) is hatched in grey.

    Args:
        pixels: (H, W, 3) uint8; enlarged by a whole factor to at least 640 pixels across.
        values: (H, W) uint8.
        names: Of the classes by value.
    """
    factor = max(1, -(-_LEAST_WIDTH // pixels.shape[1]))
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    large = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)) if factor > 1 else pixels
    drawn = tinted(large, values.repeat(factor, axis=0).repeat(factor, axis=1), names)
    return _with_legend(drawn, values, names)


def tinted(pixels: np.ndarray, values: np.ndarray, names: Mapping[int, str]) -> Image.Image:
    """Draws what `overlay` does, at the image's own size and without a legend.

    Args:
        pixels: (H, W, 3) uint8.
        values: (H, W) uint8.
        names: Of the classes by value.
    """
    solid = class_colours()[values].astype(np.float32)
    opacity = np.full(values.shape, _OPACITY, np.float32)
    opacity[edges(values, max(1, round(min(values.shape) / 320)))] = 1
    opacity[values == _NO_CLASS] = 0.35
    opacity[(values == _NO_CLASS) & stripes(values.shape[0], values.shape[1], period=9)] = 0.85
    if is_background(names.get(0)):
        opacity[values == 0] = 0
    mixed = (1 - opacity[..., None]) * pixels + opacity[..., None] * solid
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def edges(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Returns the pixels of a class within `thickness` of another: (H, W) bool."""
    found = np.zeros(labels.shape, dtype=bool)
    for step in range(1, thickness + 1):
        for one, other in ((np.s_[step:], np.s_[:-step]), (np.s_[:, step:], np.s_[:, :-step])):
            differs = labels[one] != labels[other]
            found[one] |= differs
            found[other] |= differs
    return found


def _with_legend(picture: Image.Image, values: np.ndarray, names: Mapping[int, str]) -> Image.Image:
    """Adds the classes beneath, the largest first, with their shares of the pixels."""
    counts = np.bincount(values.ravel(), minlength=256)
    present = [value for value in np.argsort(-counts, kind="stable").tolist() if counts[value]]
    keys = []
    for value in present[:_MOST_KEYS]:
        share = counts[value] / values.size
        amount = f"{share:.0%}" if share >= 0.01 else "under 1%"
        if value == _NO_CLASS:
            keys.append(Key(_colour(value), f"no class  {amount}", is_hatched=True))
        elif value == 0 and is_background(names.get(0)):
            keys.append(Key(None, f"{names.get(0, 'no class')}  {amount}"))
        else:
            keys.append(Key(_colour(value), f"{names.get(value, str(value))}  {amount}"))
    if len(present) > _MOST_KEYS:
        keys.append(Key(None, f"and {len(present) - _MOST_KEYS} more"))
    size = min(22, max(15, caption_size(picture.width)))
    return stacked([picture, legend(keys, picture.width, size)], gap=10)


def _colour(value: int) -> Colour:
    red, green, blue = class_colours()[value].tolist()
    return red, green, blue
