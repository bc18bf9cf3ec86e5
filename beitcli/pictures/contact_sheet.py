"""Draws images as a contact sheet: one size of cell, a caption below each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from beitcli.pictures.panels import INK, Colour, font_of, grid_of

_EMPTY: Colour = (228, 228, 232)
_FRAME: Colour = (0, 114, 178)
_FRAME_WIDTH = 4


def contact_sheet(
    images: Sequence[Image.Image | None], captions: Sequence[str], side: int = 224, columns: int | None = None
) -> Image.Image:
    """Draws images in reading order, each whole within a square; the first one has a frame.

    Args:
        images: None for one that is not there: its cell is gray.
        captions: One per image; the end of one that is too wide is left out.
        side: Of a cell, in pixels.
        columns: Default as many as rows, about.
    """
    cells = [square_cell(image, side) for image in images]
    frame = ImageDraw.Draw(cells[0])
    frame.rectangle((0, 0, side - 1, side - 1), outline=_FRAME, width=_FRAME_WIDTH)
    return grid_of(cells, columns or math.ceil(math.sqrt(len(cells))), captions=captions)


def square_cell(image: Image.Image | None, side: int = 224) -> Image.Image:
    """Returns a square with the whole image in its middle; one that says so where there is no image."""
    cell = Image.new("RGB", (side, side), _EMPTY)
    if image is None:
        font = font_of(side / 14)
        ImageDraw.Draw(cell).text((side / 2, side / 2), "not found", INK, font, anchor="mm")
        return cell
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    shown = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(shown, ((side - width) // 2, (side - height) // 2))
    return cell
