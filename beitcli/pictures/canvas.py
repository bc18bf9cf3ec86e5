"""The layout that sheets of pictures share: panels in a grid, each with a title and notes, and legends.

Dark text on white; sizes follow the width of the panels, so that text is legible beside small pictures too. Colours
that tell things apart are those of Okabe and Ito, which the colour-blind tell apart as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from beitcli.escaping import terminal_line
from beitcli.pictures.lettering import Font, composed, length, write
from beitcli.pictures.panels import INK, WHITE, Colour, caption_size, font_of

MUTED: Colour = (104, 104, 112)
RULE: Colour = (214, 214, 218)
BLUE: Colour = (0, 114, 178)
GREEN: Colour = (0, 158, 115)
ORANGE: Colour = (230, 159, 0)
VERMILION: Colour = (213, 94, 0)
GAP = 16  # pixels between and around panels
PREVIEW_TEXT = 16  # font size in pixels of the previews of a run, which a page shows at half their size and more
LEADING = 1.45  # height of a line / size of its font


@dataclass(frozen=True)
class Panel:
    """A picture and what stands beneath it.

    Attributes:
        title: One line, shortened in the middle where it is too long.
        notes: Paragraphs below it, wrapped.
    """

    picture: Image.Image
    title: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    Attributes:
        colour: Of its patch; None for an empty one.
        is_hatched: Whether white stripes lie on it.
    """

    colour: Colour | None
    name: str
    is_hatched: bool = False


def text_size(panels: Sequence[Image.Image]) -> int:
    """Returns the font size in pixels beneath the narrowest of some pictures."""
    return caption_size(min(picture.width for picture in panels))


def sheet(
    panels: Sequence[Panel],
    columns: int | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    gap: int = GAP,
    size: int | None = None,
) -> Image.Image:
    """Arranges panels in rows, with titles and notes beneath each; the upper left picture lies at (gap, gap + title).

    Args:
        columns: Panels per row; None for a single row.
        title: Line above all.
        notes: Paragraphs beneath all, wrapped.
        gap: Pixels between and around the panels.
        size: Font size in pixels; default by the width of the narrowest panel.

    Raises:
        ValueError: No panels.
    """
    if not panels:
        raise ValueError("a sheet needs a panel")
    columns = min(columns or len(panels), len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    size = size or text_size([panel.picture for panel in panels])
    widths = [max(panel.picture.width for panel in panels[column::columns]) for column in range(columns)]
    width = sum(widths) + gap * (columns + 1)
    font, small = font_of(size), font_of(max(11, round(0.86 * size)))
    texts = [[_lines(panel, font, small, widths[column]) for column, panel in enumerate(row)] for row in rows]
    heights = [max(panel.picture.height for panel in row) for row in rows]
    below = [max((_text_height(lines) for lines in row), default=0) for row in texts]
    head = _text_height([(title, font_of(1.25 * size), INK)]) + gap // 2 if title else 0
    foot = [(line, small, MUTED) for note in notes for line in wrapped(note, small, width - 2 * gap)]
    height = gap + head + sum(heights) + sum(below) + gap * len(rows) + (_text_height(foot) + gap // 2 if foot else 0)
    whole = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(whole)
    if title:
        big = font_of(1.25 * size)
        write(draw, (gap, gap), elided(title, big, width - 2 * gap), INK, big, "lt")
    top = gap + head
    for row, lines, picture_height, text_height in zip(rows, texts, heights, below, strict=True):
        left = gap
        for column, (panel, written) in enumerate(zip(row, lines, strict=True)):
            picture = panel.picture.convert("RGB")
            whole.paste(picture, (left + (widths[column] - picture.width) // 2, top))
            _write(draw, (left, top + picture_height), written)
            left += widths[column] + gap
        top += picture_height + text_height + gap
    _write(draw, (gap, top - gap // 2), foot)
    return whole


def balanced_columns(count: int, about: float) -> int:
    """Returns a number of columns near `about` that leaves few places of the last row empty."""
    least = max(1, round(0.75 * about))
    choices = range(min(count, least), min(count, max(least, round(1.25 * about))) + 1)
    return min(choices, key=lambda columns: (-count % columns, abs(columns - about)))


def contact_sheet(rows: Sequence[Sequence[Panel]], size: int | None = None, notes: Sequence[str] = ()) -> Image.Image:
    """Arranges the panels of several images, those of an image side by side, about half as wide again as high.

    Args:
        size: Font size in pixels; default by the width of the narrowest panel.
        notes: Paragraphs beneath all, wrapped.
    """
    panels = max(len(row) for row in rows)
    beside = max(1, min(len(rows), round((1.5 * len(rows) / panels) ** 0.5)))
    return sheet([panel for row in rows for panel in row], columns=beside * panels, size=size, notes=notes)


Line = tuple[str, Font, Colour]


def _lines(panel: Panel, font: Font, small: Font, width: int) -> list[Line]:
    lines: list[Line] = [(elided(panel.title, font, width), font, INK)] if panel.title else []
    return lines + [(line, small, MUTED) for note in panel.notes for line in wrapped(note, small, width)]


def line_height(font: Font) -> int:
    return round(LEADING * getattr(font, "size", 11))


def _text_height(lines: Sequence[Line]) -> int:
    return sum(line_height(font) for _, font, _ in lines) + (4 if lines else 0)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[Line]) -> None:
    left, top = corner[0], corner[1] + 4
    for text, font, colour in lines:
        write(draw, (left, top + line_height(font) / 2), text, colour, font, "lm")
        top += line_height(font)


def elided(text: str, font: Font, width: int) -> str:
    """Shortens a line to `width` pixels, with dots in its middle: names differ in their ends."""
    text = composed(terminal_line(text)).replace("\t", " ")  # Pillow refuses line breaks and lone surrogates
    if length(text, font) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if length(short, font) <= width:
            return short
    return text[:1]


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Breaks a paragraph between words into lines of at most `width` pixels; a longer word is shortened."""
    lines: list[str] = []
    for word in terminal_line(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and length(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(elided(word, font, width))
    return lines


def legend(keys: Sequence[Key], width: int, size: int) -> Image.Image:
    """Draws a legend of `width` pixels: entries in columns of one width, read downward in each row.

    Args:
        size: Font size in pixels.
    """
    font, side = font_of(size), round(1.1 * size)
    widest = max((length(key.name, font) for key in keys), default=0)
    cell = min(width, round(side + 0.5 * size + widest + 1.5 * size))
    columns = max(1, min(len(keys), width // max(1, cell)))
    step = max(line_height(font), side + 4)
    picture = Image.new("RGB", (width, step * -(-len(keys) // columns)), WHITE)
    draw = ImageDraw.Draw(picture)
    for number, key in enumerate(keys):
        row, column = divmod(number, columns)
        left, middle = column * cell, row * step + step // 2
        box = (left, middle - side // 2, left + side, middle - side // 2 + side)
        draw.rectangle(box, key.colour or WHITE, INK if key.colour else RULE)
        if key.is_hatched:
            hatch(picture, box)
        room = cell - side - round(0.5 * size)
        write(draw, (left + side + 0.5 * size, middle), elided(key.name, font, room), INK, font, "lm")
    return picture


def hatch(picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Draws the stripes of `stripes` into a box with its frame, in place."""
    left, upper, right, lower = (box[0] + 1, box[1] + 1, box[2], box[3])
    pixels = np.asarray(picture.crop((left, upper, right, lower))).copy()
    pixels[stripes(pixels.shape[0], pixels.shape[1])] = WHITE
    picture.paste(Image.fromarray(pixels), (left, upper))


def stripes(height: int, width: int, period: int = 6) -> np.ndarray:
    """Returns diagonal stripes, (height, width) bool, a third of the pixels."""
    rows, columns = np.ogrid[:height, :width]
    return (rows + columns) % period < period // 3


def stacked(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Sets pictures below each other on white, from the left."""
    size = (max(each.width for each in pictures), sum(each.height for each in pictures) + gap * (len(pictures) - 1))
    whole = Image.new("RGB", size, WHITE)
    top = 0
    for each in pictures:
        whole.paste(each.convert("RGB"), (0, top))
        top += each.height + gap
    return whole


def enlarged(picture: Image.Image, least: int) -> Image.Image:
    """Enlarges a photograph by a whole factor to at least `least` pixels across, smoothly; a larger one stays."""
    factor = max(1, -(-least // picture.width))
    if factor == 1:
        return picture.convert("RGB")
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
