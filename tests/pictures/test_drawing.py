"""Figures as pixels, SVG and PDF, and the layout of the paper's Figure 2."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.attention_figure import FigureRow, attention_figure, headed
from beitcli.pictures.drawing import Disc, Drawing, Picture, Text, as_pdf, as_pixels, as_svg

RED = Image.new("RGB", (8, 8), (200, 0, 0))
DRAWING = Drawing(
    (72, 36), [Picture(RED, (0, 0, 36, 36)), Disc((54, 18), 9, (0, 114, 178), "3"), Text("a (b)", (54, 6), 6)], "<t> ü"
)


def test_pixels_lie_where_the_points_say():
    pixels = np.asarray(as_pixels(DRAWING, 144)).astype(int)
    assert pixels.shape == (72, 144, 3)
    assert (pixels[:, :72] == (200, 0, 0)).all()
    blue = (np.abs(pixels - (0, 114, 178)).max(-1) < 20).nonzero()
    assert abs(blue[0].mean() - 36) < 1.5
    assert abs(blue[1].mean() - 108) < 1.5
    assert 14 <= np.ptp(blue[0]) // 2 <= 18


def test_svg_is_xml_with_text_as_text():
    root = ElementTree.fromstring(as_svg(DRAWING))
    name = "{http://www.w3.org/2000/svg}"
    assert (root.get("width"), root.get("viewBox")) == ("72pt", "0 0 72 36")
    assert [each.text for each in root.iter(f"{name}text")] == ["3", "a (b)"]
    assert root.find(f"{name}title").text == "<t> ü"
    (image,) = root.iter(f"{name}image")
    assert image.get("href").startswith("data:image/jpeg;base64,")


def test_colours_and_edges_of_pictures_survive_in_a_pdf():
    """Chroma subsampling, or a low quality, would mix the columns."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2], pixels[:, 1::2] = (220, 30, 30), (30, 30, 220)
    file = as_pdf(Drawing((16, 16), [Picture(Image.fromarray(pixels), (0, 0, 16, 16))], "t"))
    start = file.index(b"\xff\xd8")
    decoded = np.asarray(Image.open(BytesIO(file[start : file.index(b"\nendstream", start)]))).astype(int)
    assert np.abs(decoded - pixels).max() <= 20


def test_pdf_has_offsets_that_lead_to_its_objects_and_text_as_text():
    file = as_pdf(DRAWING)
    start = int(re.search(rb"startxref\n(\d+)", file)[1])
    offsets = [int(each) for each in re.findall(rb"(\d{10}) 00000 n", file[start:])]
    assert file[start:].startswith(b"xref\n0 8\n")
    for number, offset in enumerate(offsets, start=1):
        assert file[offset:].startswith(b"%d 0 obj" % number)
    content = zlib.decompress(file[file.index(b"stream\n", offsets[3]) + 7 : file.index(b"\nendstream", offsets[3])])
    assert b"(a \\(b\\)) Tj" in content
    assert b"36 0 0 36 0 0 cm /Im0 Do" in content
    stored = file[file.index(b"stream\n", offsets[6]) + 7 : file.index(b"\nendstream", offsets[6])]
    decoded = Image.open(BytesIO(stored))
    assert (decoded.format, decoded.size) == ("JPEG", RED.size)
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(RED)).max() <= 2


@pytest.mark.parametrize("text", ["日本", "a\nb", "\udcff"])
def test_no_text_breaks_a_file(text):
    drawing = Drawing((72, 36), [Text(text, (36, 18), 6)], text)
    assert as_pdf(drawing).endswith(b"%%EOF\n")
    ElementTree.fromstring(as_svg(drawing).encode())


def row(points: int = 2, maps: int = 2) -> FigureRow:
    return FigureRow(
        Image.new("RGB", (80, 80), (90, 160, 90)),
        [(number, (20.0 * number, 30.0)) for number in range(1, points + 1)],
        [(number % points, np.eye(4)) for number in range(maps)],
    )


def test_figure_has_the_photograph_and_each_map_with_its_point():
    figure = attention_figure([row(), row()])
    assert figure.size == (3 * 96 + 8, 2 * 96 + 4)
    discs = [(item.label, round(item.centre[0])) for item in figure.items if isinstance(item, Disc)]
    near = [(x + 0.5) / 80 * 96 for x in (20, 40)]
    one = [("1", near[0]), ("2", near[1]), ("1", near[0] + 100), ("2", near[1] + 200)]
    assert discs == [(label, round(x)) for label, x in one] * 2
    assert not [item for item in figure.items if isinstance(item, Text)]


def test_figure_names_its_columns_and_breaks_long_rows():
    figure = attention_figure([row(points=1, maps=9)], headers=[f"head {number}" for number in range(9)])
    assert figure.size == (8 * 96 + 7 * 4, 2 * (12 + 96) + 4)
    assert [item.text for item in figure.items if isinstance(item, Text)] == [f"head {number}" for number in range(9)]


def test_figure_with_words_names_each_image_and_tells_the_scale_of_each_map():
    named = [replace(row(), name=name, tells_scale=True) for name in ("a.jpg", "b" * 200 + ".jpg")]
    figure = attention_figure(named)
    assert figure.size == (3 * 96 + 8, 2 * (12 + 96 + 12) + 4)
    texts = [item for item in figure.items if isinstance(item, Text)]
    assert [item.text for item in texts[:3]] == ["a.jpg", "max 100%", "max 100%"]
    assert texts[3].text.startswith("bbb")
    assert texts[3].text.endswith(".jpg")
    assert [item.centre[1] for item in texts] == [6, 114, 114, 130, 238, 238]
    assert [item.centre[0] for item in texts[1:3]] == [148, 248]
    for item in (texts[0], texts[3]):  # from the left edge
        drawn = np.asarray(as_pixels(Drawing(figure.size, [item]), 300))
        columns = np.flatnonzero((drawn < 200).any(axis=(0, 2)))
        assert 0 <= columns.min() <= 10
        assert columns.max() < drawn.shape[1] - 1


def test_lines_above_a_figure_move_it_down_and_are_wrapped():
    plain = attention_figure([row()])
    figure = headed(plain, ["runs/mine, layer 5 (of 0 to 5), mean of the heads", "a word " * 30])
    words = [item for item in figure.items if isinstance(item, Text)]
    assert [item.centre for item in words] == [(0, 6 + 12 * number) for number in range(len(words))]
    assert len(words) > 2
    down = figure.size[1] - plain.size[1]
    assert (figure.size[0], down) == (plain.size[0], 12 * len(words) + 4)
    moved = [item.box[1] for item in figure.items if isinstance(item, Picture)]
    assert moved == [item.box[1] + down for item in plain.items if isinstance(item, Picture)]
    left = Drawing((72, 36), [Text("left", (10, 18), 6, is_left=True)])
    assert np.flatnonzero((np.asarray(as_pixels(left, 72)) < 200).any(axis=(0, 2))).min() in (10, 11)
    assert 'text-anchor="start"' in as_svg(left)


def test_figure_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no maps"):
        attention_figure([])
