"""Charts on white: bars, a curve on logarithmic axes, and a grid of values with its scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from beitcli.pictures import colormap
from beitcli.pictures.canvas import BLUE, MUTED, RULE, VERMILION, elided
from beitcli.pictures.lettering import write
from beitcli.pictures.panels import INK, WHITE, Colour, font_of

_TEXT = 17  # font size in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 22, 44, 58  # margins around the plot in pixels
_OVERSAMPLING = 4  # Pillow does not antialias shapes
_SIZE = (620, 420)  # width and height of a chart


@dataclass(frozen=True)
class Scale:
    """One axis: values to fractions of its length, and the values that are written at it.

    Attributes:
        to_share: Maps a value to [0, 1].
        ticks: Values and their texts.
    """

    to_share: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


def linear(low: float, high: float, *, as_percent: bool = False) -> Scale:
    """Returns an axis from `low` to `high` with about five round ticks."""
    span = (high - low) or 1.0
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = int((high / step - first) + 1e-6) + 1
    values = [(first + number) * step for number in range(max(1, count))]
    texts = [f"{100 * value:.4g}%" if as_percent else f"{value:,.6g}" for value in values]
    return Scale(lambda value: (value - low) / span, tuple(zip(values, texts, strict=True)))


def logarithmic(low: float, high: float) -> Scale:
    """Returns an axis of powers of ten that takes in `low` and `high`, both above 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    ticks = tuple((10.0**power, _power(power)) for power in range(first, last + 1))
    return Scale(lambda value: (math.log10(value) - first) / (last - first), ticks)


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"


class Plot:
    """A chart's frame: title, axes, grid lines; what is plotted is drawn on top of it.

    Args:
        title: Line above.
        names: Of the horizontal and the vertical axis.
    """

    def __init__(self, title: str, x: Scale, y: Scale, names: tuple[str, str], size: tuple[int, int] = _SIZE) -> None:
        self.x, self.y = x, y
        self.picture = Image.new("RGB", size, WHITE)
        self.draw = ImageDraw.Draw(self.picture)
        self.box = (_LEFT, _TOP + 18, size[0] - _RIGHT, size[1] - _BOTTOM)
        left, _, right, lower = self.box
        font, small = font_of(1.15 * _TEXT), font_of(0.84 * _TEXT)
        write(self.draw, (0, 2), elided(title, font, size[0]), INK, font, "lt")
        for value, text in y.ticks:
            height = self.place(0, value)[1]
            self.draw.line((left, height, right, height), RULE)
            self.draw.text((left - 8, height), text, MUTED, small, anchor="rm")
        for value, text in x.ticks:
            across = left + x.to_share(value) * (right - left)
            self.draw.line((across, lower, across, lower + 5), MUTED)
            self.draw.text((across, lower + 9), text, MUTED, small, anchor="mt")
        self.draw.line((left, lower, right, lower), INK)
        self.draw.text(((left + right) / 2, size[1] - 6), names[0], INK, small, anchor="mb")
        self.draw.text((0, _TOP - 4), names[1], MUTED, small, anchor="lm")

    def place(self, x_share: float, y_value: float) -> tuple[float, float]:
        """Returns pixels of a fraction of the horizontal axis and a value of the vertical one."""
        left, upper, right, lower = self.box
        return left + x_share * (right - left), lower - self.y.to_share(y_value) * (lower - upper)

    def curve(self, points: Sequence[tuple[float, float]], colour: Colour, width: float = 2.5) -> None:
        """Draws a line through two or more pixels of the picture, as wide on a slope as elsewhere."""
        large = Image.new("L", [_OVERSAMPLING * side for side in self.picture.size])
        scaled = [(_OVERSAMPLING * across, _OVERSAMPLING * down) for across, down in points]
        ImageDraw.Draw(large).line(scaled, 255, round(_OVERSAMPLING * width), joint="curve")
        self.picture.paste(colour, mask=large.resize(self.picture.size, Image.Resampling.BOX))


def bar_chart(
    shares: np.ndarray, first: int, title: str, names: tuple[str, str], size: tuple[int, int] = _SIZE
) -> Image.Image:
    """Draws a bar for each of the whole numbers from `first`, as percent.

    Args:
        shares: (n,) in [0, 1].
        names: Of the axes.
    """
    x = linear(first - 0.5, first + len(shares) - 0.5)
    whole = {round(value): text for value, text in x.ticks if abs(value - round(value)) < 1e-6}
    y = linear(0, float(shares.max()), as_percent=True)
    plot = Plot(title, Scale(x.to_share, tuple(whole.items())), y, names, size)
    for number, share in enumerate(shares.tolist()):
        if share > 0:
            left, top = plot.place(number / len(shares), share)
            right = plot.place((number + 1) / len(shares), share)[0]
            inset = min(1.5, 0.12 * (right - left))
            plot.draw.rectangle((left + inset, min(top, plot.box[3] - 1), right - inset, plot.box[3] - 1), BLUE)
    return plot.picture


def rank_chart(
    counts: np.ndarray, marks: Sequence[tuple[float, str]], title: str, names: tuple[str, str]
) -> Image.Image:
    """Draws sorted counts against their rank from 1, both logarithmic.

    Args:
        counts: (n,) in descending order, above 0.
        marks: Ranks with a word each, drawn as dashed upright lines.
    """
    farthest = max([len(counts), *(mark for mark, _ in marks)])
    plot = Plot(title, logarithmic(1, farthest), logarithmic(max(1, int(counts.min())), int(counts.max())), names)
    ranks = np.unique(np.geomspace(1, len(counts), 600).round().astype(int))
    points = [plot.place(plot.x.to_share(rank), counts[rank - 1]) for rank in ranks.tolist()]
    if len(points) > 1:
        plot.curve(points, BLUE)
    else:
        plot.draw.ellipse((points[0][0] - 4, points[0][1] - 4, points[0][0] + 4, points[0][1] + 4), BLUE)
    font = font_of(0.84 * _TEXT)
    places = [plot.place(plot.x.to_share(rank), counts.max())[0] for rank, _ in marks]
    for across in places:
        for top in range(plot.box[1], plot.box[3], 10):
            plot.draw.line((across, top, across, top + 5), VERMILION, 2)
    for number, (across, (_, word)) in enumerate(zip(places, marks, strict=True)):  # above the lines of all
        is_left = across > (plot.box[0] + plot.box[2]) / 2
        at = (across - 8 if is_left else across + 8, plot.box[1] + 10 + 22 * number)
        box = plot.draw.textbbox(at, word, font=font, anchor="rm" if is_left else "lm")
        plot.draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), WHITE)
        plot.draw.text(at, word, VERMILION, font, anchor="rm" if is_left else "lm")
    return plot.picture


def heat_chart(values: np.ndarray, title: str, note: str, width: int = 440) -> Image.Image:
    """Draws a grid of values in [0, 1] as percent, with its scale from the least to the largest at the right.

    Args:
        values: (h, w).
        note: Line beneath the title, such as what the values are.
    """
    rows, columns = values.shape
    cell = max(2, width // max(rows, columns))
    low, high = float(values.min()), float(values.max())
    relative = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    pixels = colormap.apply(0.15 + 0.8 * relative).repeat(cell, axis=0).repeat(cell, axis=1)
    font, small = font_of(1.15 * _TEXT), font_of(0.84 * _TEXT)
    top, side = _TOP + 18, 18
    picture = Image.new("RGB", (columns * cell + 100, top + max(120, rows * cell) + 8), WHITE)
    draw = ImageDraw.Draw(picture)
    write(draw, (0, 2), elided(title, font, picture.width), INK, font, "lt")
    write(draw, (0, _TOP - 4), elided(note, small, picture.width), MUTED, small, "lm")
    picture.paste(Image.fromarray(pixels), (0, top))
    height = max(110, rows * cell)
    ramp = colormap.apply(0.15 + 0.8 * np.linspace(1, 0, height)[:, None]).repeat(side, axis=1)
    left = columns * cell + 18
    picture.paste(Image.fromarray(ramp), (left, top))
    for share, value in ((0.0, high), (0.5, (low + high) / 2), (1.0, low)):
        anchor = {0.0: "lt", 0.5: "lm", 1.0: "lb"}[share]
        draw.text((left + side + 7, top + share * height), f"{value:.0%}", INK, small, anchor=anchor)
    return picture
