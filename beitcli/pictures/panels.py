"""Arranges pictures in a grid with captions, and draws point markers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from beitcli.pictures.lettering import Font, composed, length, write

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
INK: Colour = (40, 40, 44)
GREY: Colour = (96, 96, 104)
_MARKER_OVERSAMPLING = 4  # Pillow does not antialias shapes
_LEAST_SPACE, _SIZES_TRIED = 0.22, 8  # of the font's size


def crisp(image: Image.Image, min_width: int) -> Image.Image:
    """Converts to RGB and repeats every pixel a whole number of times, up to at least `min_width` pixels."""
    factor = max(1, -(-min_width // image.width))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def nearest(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Converts to RGB and resizes to `size` (width, height) with nearest-neighbour interpolation."""
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def grid_of(
    images: Sequence[Image.Image],
    columns: int | None = None,
    gap: int = 16,
    captions: Sequence[str] | None = None,
    background: Colour = WHITE,
) -> Image.Image:
    """Arranges images in rows, each centred in its cell, its caption below.

    Args:
        images: In reading order; their sizes may differ.
        columns: Images per row; None for a single row.
        gap: Pixels between and around the images.
        captions: One per image; a caption wider than its column is truncated.
        background: RGB.

    Raises:
        ValueError: No images, no columns, or a wrong number of captions.
    """
    if not images or (columns is not None and columns < 1):
        raise ValueError(f"{len(images)} images in {columns} columns make no picture")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    columns = min(columns or len(images), len(images))
    widths = [max(image.width for image in images[column::columns]) for column in range(columns)]
    heights = [max(image.height for image in images[row : row + columns]) for row in range(0, len(images), columns)]
    font = font_of(caption_size(min(widths)))
    caption_height = 0 if captions is None else round(1.75 * caption_size(min(widths)))
    size = (sum(widths) + gap * (columns + 1), sum(heights) + (gap + caption_height) * len(heights) + gap)
    picture = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(picture)
    ink = INK if sum(background) > 3 * 127 else WHITE
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        left = gap + sum(widths[:column]) + gap * column
        top = gap + sum(heights[:row]) + (gap + caption_height) * row
        centre = left + widths[column] // 2
        picture.paste(image.convert("RGB"), (centre - image.width // 2, top + (heights[row] - image.height) // 2))
        if captions is not None:
            text = _cut(captions[number], font, widths[column])
            write(draw, (centre, top + heights[row] + caption_height / 2), text, ink, font, "mm")
    return picture


@cache
def font_of(size: float) -> Font:
    """Returns the built-in font at the next size at which its space, a whole number of pixels, separates words."""
    sizes = range(round(size), round(size) + _SIZES_TRIED)
    fonts = [ImageFont.load_default(size=each) for each in sizes]
    wide = (font for each, font in zip(sizes, fonts, strict=True) if font.getlength(" ") >= _LEAST_SPACE * each)
    return next(wide, fonts[0])


def caption_size(width: int) -> int:
    """Returns the font size in pixels below an image of `width` pixels: about 45 letters per line."""
    return min(48, max(12, round(width / 24)))


def titled(image: Image.Image, lines: Sequence[str], size: int | None = None) -> Image.Image:
    """Adds a title above a picture that has a white margin: the first line in ink, the others in grey.

    Args:
        image: RGB, with a margin of 16 pixels.
        lines: A line that is wider than the picture is truncated.
        size: Font size in pixels; default by the width.
    """
    size = size or min(28, max(14, round(image.width / 84)))
    line, font = round(1.5 * size), font_of(size)
    picture = Image.new("RGB", (image.width, image.height + line * len(lines) + size // 2), WHITE)
    draw = ImageDraw.Draw(picture)
    for number, text in enumerate(lines):
        place = 16, size // 2 + line * (number + 0.5)
        write(draw, place, _cut(text, font, image.width - 32), GREY if number else INK, font, "lm")
    picture.paste(image, (0, picture.height - image.height))
    return picture


def mark_point(image: Image.Image, point: tuple[float, float], label: str, colour: Colour) -> None:
    """Draws a numbered disc on the image, in place.

    Args:
        image: RGB.
        point: (x, y) of its centre, in pixels.
        label: One or two characters.
        colour: RGB of the disc; its rim is white.
    """
    radius = max(7, round(min(image.size) / 26))
    side = (2 * radius + 1) * _MARKER_OVERSAMPLING
    disc = Image.new("RGBA", (side, side), (*WHITE, 0))
    draw = ImageDraw.Draw(disc)
    rim = side * 0.09
    draw.ellipse((0, 0, side - 1, side - 1), (*WHITE, 255))
    draw.ellipse((rim, rim, side - 1 - rim, side - 1 - rim), (*colour, 255))
    luminance = float(np.dot(colour, (0.299, 0.587, 0.114)))
    font = ImageFont.load_default(size=side * (0.62 if len(label) < 2 else 0.48))
    draw.text((side / 2, side / 2), label, INK if luminance > 150 else WHITE, font, anchor="mm")
    disc = disc.resize((2 * radius + 1, 2 * radius + 1), Image.Resampling.BOX)
    image.paste(disc, (round(point[0]) - radius, round(point[1]) - radius), disc)


def _cut(text: str, font: Font, width: int) -> str:
    """Truncates text, with dots, to `width` pixels."""
    text = composed(text)
    if length(text, font) <= width:
        return text
    while text and length(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip() + "..."
