"""The layout of the paper's Figure 2: each photograph with its reference points, and each point's map beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFont

from beitcli.pictures.attention import ACCENTS, Point, draw_heatmap, percent
from beitcli.pictures.canvas import elided, wrapped
from beitcli.pictures.drawing import Disc, Drawing, Item, Picture, Text

_SIDE = 96.0  # points, of the longer side of a cell
_GAP = 4.0
_HEADER = 12.0  # height of a line of text
_TEXT, _MEASURED = 7.5, 16
_MOST_MAPS = 7  # in one row; further maps go below


@dataclass(frozen=True)
class FigureRow:
    """One photograph and the maps beside it.

    Attributes:
        photograph: RGB, the crop that the maps cover.
        points: Each with its number and (x, y) in pixels of the photograph.
        maps: Each (h, w) with the place of its point in `points`.
        name: Written above the row.
        tells_scale: Whether the maximum of each map is written below it.
    """

    photograph: Image.Image
    points: Sequence[tuple[int, Point]]
    maps: Sequence[tuple[int, np.ndarray]]
    name: str = ""
    tells_scale: bool = False


def attention_figure(
    rows: Sequence[FigureRow],
    threshold: float | None = None,
    smooth: bool = False,
    headers: Sequence[str] = (),
    title: str = "",
) -> Drawing:
    """Draws the figure on white, without margins around it.

    Args:
        rows: From top to bottom; their photographs have one shape.
        threshold: Fraction of the attention to show, in (0, 1]; None for all.
        smooth: Whether the heat is interpolated between patches.
        headers: One above each map of a row; none for a figure of pictures alone.
        title: For the metadata.

    Raises:
        ValueError: No rows, or a row without maps.
    """
    if not rows or not all(row.maps for row in rows):
        raise ValueError("a figure of no maps")
    wide, high = rows[0].photograph.size
    cell = _SIDE * min(1, wide / high), _SIDE * min(1, high / wide)
    step = cell[0] + _GAP, cell[1] + _GAP
    columns = 1 + min(_MOST_MAPS, max(len(row.maps) for row in rows))
    header, top, items = _HEADER if headers else 0.0, 0.0, list[Item]()
    for row in rows:
        below = _HEADER if row.tells_scale else 0.0
        if row.name:
            items.append(_name(row.name, top + _HEADER / 2, columns * step[0] - _GAP))
            top += _HEADER
        items += _cell(row, row.photograph, row.points, (0, top + header, *cell))
        for number, (place, attention) in enumerate(row.maps):
            down, across = divmod(number, _MOST_MAPS)
            box = (across + 1) * step[0], top + header + down * (step[1] + header + below), *cell
            heat = draw_heatmap(row.photograph, attention, threshold, smooth)
            items += _cell(row, heat, [row.points[place]], box)
            if headers:
                items.append(Text(headers[number], (box[0] + cell[0] / 2, box[1] - header / 2 + 1), _TEXT))
            if row.tells_scale:
                most = f"max {percent(float(attention.max()))}"
                items.append(Text(most, (box[0] + cell[0] / 2, box[1] + cell[1] + below / 2), _TEXT))
        top += -(-len(row.maps) // _MOST_MAPS) * (step[1] + header + below)
    return Drawing((columns * step[0] - _GAP, top - _GAP), items, title)


def headed(figure: Drawing, lines: Sequence[str]) -> Drawing:
    """Returns a figure below some lines, which are wrapped to its width."""
    font = ImageFont.load_default(_MEASURED * _TEXT)
    shown = [each for line in lines for each in wrapped(line, font, math.floor(_MEASURED * figure.size[0]))]
    words = [_name(line, (number + 0.5) * _HEADER, figure.size[0]) for number, line in enumerate(shown)]
    down = _HEADER * len(shown) + _GAP
    items = [*words, *(_moved(item, down) for item in figure.items)]
    return replace(figure, size=(figure.size[0], figure.size[1] + down), items=items)


def _moved(item: Item, down: float) -> Item:
    if isinstance(item, Picture):
        left, top, width, height = item.box
        return replace(item, box=(left, top + down, width, height))
    return replace(item, centre=(item.centre[0], item.centre[1] + down))


def _name(name: str, middle: float, width: float) -> Text:
    """Returns a line from the left, shortened to the width."""
    font = ImageFont.load_default(_MEASURED * _TEXT)  # letters of a small one are as wide as whole pixels
    shown = elided(name, font, math.floor(_MEASURED * width))
    return Text(shown, (0, middle), _TEXT, is_left=True)


def _cell(
    row: FigureRow, image: Image.Image, points: Sequence[tuple[int, Point]], box: tuple[float, float, float, float]
) -> list[Item]:
    left, top, width, height = box
    items: list[Item] = [Picture(image, box)]
    for number, (x, y) in points:
        centre = left + (x + 0.5) / row.photograph.width * width, top + (y + 0.5) / row.photograph.height * height
        items.append(Disc(centre, 5.0, ACCENTS[(number - 1) % len(ACCENTS)], str(number)))
    return items
