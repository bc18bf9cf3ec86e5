"""Names of any script in pictures: in a font that has their letters, or spelled so that the name can be recognized."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw

from beitcli.pictures import lettering
from beitcli.pictures.boxes import draw_bounding_boxes
from beitcli.pictures.canvas import Key, Panel, elided, legend, sheet
from beitcli.pictures.drawing import Drawing, Text, as_pdf, as_pixels
from beitcli.pictures.lettering import length, set_in, spelled, write
from beitcli.pictures.panels import font_of, grid_of, titled

FONT = font_of(20)
NAME = "Schöner Vogel 日本.jpg"
PLAIN = Image.new("RGB", (400, 40), (0, 90, 0))


@pytest.fixture
def no_fonts(monkeypatch, tmp_path):
    """A system without fonts."""
    monkeypatch.setattr(lettering, "_folders", lambda: iter([str(tmp_path)]))


def drawn(text, draw_text):
    picture = Image.new("RGB", (500, 40), "white")
    draw_text(ImageDraw.Draw(picture), text)
    return picture.tobytes()


@pytest.mark.parametrize("text", ["a plain name_01.jpg", "dots… and °C", "x" * 80])
def test_what_the_built_in_font_can_set_stays_byte_for_byte(text):
    ours = drawn(text, lambda draw, text: write(draw, (4, 20), text, (40, 40, 44), FONT, "lm"))
    assert ours == drawn(text, lambda draw, text: draw.text((4, 20), text, (40, 40, 44), FONT, anchor="lm"))
    assert set_in(text, FONT)[1] is FONT
    assert length(text, FONT) == FONT.getlength(text)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Mein schöner Vogel.jpg", "Mein schoner Vogel.jpg"),
        ("Café naïve ß Ł ø Æ œ", "Cafe naive ss L o AE oe"),
        ("日本", "U+65E5U+672C"),
        ("Ω😀", "U+03A9U+1F600"),
        ("ﬁ¼ x\u030c", "fiU+00BC x"),
    ],
)
def test_letters_that_no_font_has_are_spelled(no_fonts, name, shown):
    for form in ("NFC", "NFD"):
        text, font = set_in(unicodedata.normalize(form, name), FONT)
        assert text.replace("\ufb01", "fi") == shown
        assert font is FONT
        assert all(lettering._has(None, letter) for letter in text)


def test_a_font_of_the_system_sets_what_the_built_in_one_lacks():
    if not any(lettering._has(path, "ö") for path in lettering._system_fonts(tuple(lettering._folders()))):
        pytest.skip("this system has no font with the letter")
    for form in ("NFC", "NFD"):
        text, font = set_in(unicodedata.normalize(form, "schöner"), FONT)
        assert text == "schöner"
        assert font is not FONT
        assert (font.size, font.getlength(text)) == (FONT.size, length(text, FONT))


def test_the_font_that_has_most_letters_is_taken_and_the_rest_spelled(monkeypatch):
    had = {None: "", "few": "Aaz09ö", "most": "Aaz09öλ", "other": "Aaz09öλ", "no latin": "öλ日"}
    monkeypatch.setattr(lettering, "_has", lambda path, letter: letter in had[path])
    assert lettering._best.__wrapped__(frozenset("öλ日"), ("no latin", "few", "most", "other")) == "most"
    assert lettering._best.__wrapped__(frozenset("ö"), ("few", "most")) == "few"
    assert lettering._best.__wrapped__(frozenset("日"), ("few", "most")) is None
    assert spelled("öλ日", lambda letter: letter in had["most"]) == "öλU+65E5"


@pytest.mark.parametrize("separator", ["\u2029", "\x85", "\u2028"])
def test_separators_that_no_layout_takes_are_spelled(separator):
    assert length(f"a{separator}b", FONT) > length("ab", FONT)
    grid_of([PLAIN], captions=[f"a{separator}b"])


def test_fonts_are_chosen_by_preference_not_by_where_they_lie(monkeypatch, tmp_path):
    for name in ("a/DejaVuSans.ttf", "b/Arial.ttf", "c/NotoSansThai-Regular.ttf", "c/Fancy.ttf", "d/arial.ttf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no font")
    monkeypatch.setattr(lettering, "_folders", lambda: iter([str(tmp_path), str(tmp_path / "missing")]))
    found = [path.removeprefix(f"{tmp_path}/") for path in lettering._system_fonts(tuple(lettering._folders()))]
    assert found == ["b/Arial.ttf", "a/DejaVuSans.ttf", "c/NotoSansThai-Regular.ttf"]
    assert set_in("schön", FONT) == ("schon", FONT)  # files that are no fonts


PICTURES = {
    "grid": lambda name: grid_of([PLAIN], captions=[name]),
    "title": lambda name: titled(PLAIN, [name, name]),
    "sheet": lambda name: sheet([Panel(PLAIN, name, (name,))], title=name, notes=[name]),
    "legend": lambda name: legend([Key((0, 90, 0), name)], 400, 20),
    "figure": lambda name: as_pixels(Drawing((400, 20), [Text(name, (200, 10), 12)])),
    "boxes": lambda name: draw_bounding_boxes(
        np.asarray(PLAIN.resize((400, 400))), np.array([[10, 100, 300, 300]]), np.array([0]), None, [name]
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_picture_writes_a_name_with_spelled_letters(no_fonts, kind):
    make = PICTURES[kind]
    assert make(NAME).tobytes() == make("Schoner Vogel U+65E5U+672C.jpg").tobytes()


def test_a_long_name_of_any_script_stays_within_its_width(no_fonts):
    assert length(elided(NAME * 5, FONT, 200), FONT) <= 200


def test_a_pdf_spells_what_its_font_lacks():
    import re
    import zlib

    file = as_pdf(Drawing((200, 20), [Text("o\u0308 € 日 λ", (100, 10), 8)]))
    content = zlib.decompress(re.search(rb"FlateDecode.*?stream\n(.*?)\nendstream", file, re.DOTALL)[1])
    assert "(ö € U+65E5 U+03BB) Tj".encode("cp1252") in content
