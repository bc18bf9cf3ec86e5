"""Sheets of panels: where pictures lie, and that text stays within its panel; charts that take any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.canvas import (
    Key,
    Panel,
    balanced_columns,
    contact_sheet,
    elided,
    enlarged,
    font_of,
    legend,
    sheet,
    wrapped,
)
from beitcli.pictures.charts import bar_chart, heat_chart, linear, logarithmic

RED = (255, 0, 0)


def plain(size, colour=RED):
    return Image.new("RGB", size, colour)


def test_sheet_sets_pictures_in_rows_and_text_beneath_within_its_panel():
    words = "a note of many words that is wrapped and wrapped again"
    panels = [Panel(plain((120, 80)), "title " * 20, (words,)) for _ in range(3)]
    pixels = np.asarray(sheet(panels, columns=2))
    red = (pixels == RED).all(axis=-1)
    assert red[16:96, 16:136].all()
    assert red[16:96, 152:272].all()
    assert red.sum() == 3 * 120 * 80
    text = (pixels != 255).any(axis=-1) & ~red
    assert text[96:, 16:136].any()
    columns = np.nonzero(text.any(axis=0))[0]
    allowed = set(range(15, 137)) | set(range(151, 273))  # smoothing may touch a pixel beside
    assert set(columns.tolist()) <= allowed


def test_sheet_needs_a_panel():
    with pytest.raises(ValueError, match="panel"):
        sheet([])


def test_contact_sheet_keeps_the_panels_of_an_image_together():
    colours = [(40 * number, 0, 200) for number in range(6)]
    rows = [[Panel(plain((60, 60), colour)), Panel(plain((60, 60), RED))] for colour in colours]
    picture = contact_sheet(rows)
    with_note = np.asarray(contact_sheet(rows, notes=["one line beneath all"]))
    assert (with_note[: picture.height - 8] == np.asarray(picture)[:-8]).all()
    assert (with_note[picture.height :] != 255).any()
    seen = [picture.getpixel((16 + 76 * column + 5, 21)) for column in range(4)]
    assert seen == [colours[0], RED, colours[1], RED]


@pytest.mark.parametrize(("count", "about", "columns"), [(64, 9.3, 8), (12, 4.2, 4), (1, 3, 1), (5, 1, 1), (7, 3.2, 4)])
def test_columns_leave_few_places_empty(count, about, columns):
    assert balanced_columns(count, about) == columns


def test_lines_are_cut_in_their_middle_and_hold_no_control_characters():
    font = font_of(14)
    short = elided("n02077923_sea_lion_with_a_long_name_0001.JPEG", font, 150)
    assert font.getlength(short) <= 150
    assert short.startswith("n020")
    assert short.endswith(".JPEG")
    assert "..." in short
    assert "\n" not in elided("a\nb\udcff\x1b[31m", font, 900)
    for line in wrapped("one two three " + "x" * 80, font, 60):
        assert font.getlength(line) <= 60
    sheet([Panel(plain((90, 60)), "a\nb\udcff.png", ("c\nd\udcff",))])


def test_legend_has_every_colour():
    colours = [(10 * number, 255 - 10 * number, 7) for number in range(9)]
    picture = legend([Key(colour, f"class {number}") for number, colour in enumerate(colours)], 300, 14)
    pixels = np.asarray(picture)
    assert picture.width == 300
    for colour in colours:
        assert (pixels == colour).all(axis=-1).sum() > 100


def test_small_photographs_are_enlarged_by_a_whole_factor():
    assert enlarged(plain((64, 32)), 448).size == (448, 224)
    assert enlarged(plain((500, 20)), 448).size == (500, 20)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1e-9), (0, 0.07), (0.5, 9.5), (3, 12345)])
def test_linear_axes_have_a_few_round_ticks_within(low, high):
    ticks = [value for value, _ in linear(low, high).ticks]
    assert 1 <= len(ticks) <= 12
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


def test_logarithmic_axes_take_in_both_ends():
    scale = logarithmic(3, 4500)
    assert [value for value, _ in scale.ticks] == [1, 10, 100, 1000, 10000]
    assert (scale.to_share(1), scale.to_share(10000), scale.to_share(100)) == (0, 1, 0.5)
    assert len(logarithmic(1, 1).ticks) == 2


def test_bars_are_as_high_as_their_shares():
    picture = np.asarray(bar_chart(np.array([0.2, 0.4, 0.0]), 1, "t", ("x", "y")))
    blue = (picture == (0, 114, 178)).all(axis=-1)
    heights = blue.sum(axis=0)
    tall, low = np.unique(heights[heights > 0])[::-1][:2]
    assert tall / low == pytest.approx(2, abs=0.05)


def test_heat_chart_of_equal_values_is_one_colour():
    pixels = np.asarray(heat_chart(np.full((4, 4), 0.4), "t", "n"))[70:400, 10:400]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1
