"""Pages in one file: whole, closed to the network, and safe with any text."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.page_file import (
    Page,
    assemble,
    base64_of,
    embedded_json,
    fill,
    image_url,
    page_part,
    plain_section,
)

NASTY = ["<img src=x onerror=alert(1)>.jpg", "</script><script>alert(1)</script>", "a&amp;b", "\u2028", "{{data}}"]


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def elements_of(page: str) -> Elements:
    parsed = Elements()
    parsed.feed(page.encode().decode())
    return parsed


@pytest.mark.parametrize("name", NASTY)
def test_page_keeps_any_text_as_text(name):
    body = fill("<h1>{{name}}</h1>\n", name=name)
    page = assemble(Page(title=name, body=body, data={"name": name}))
    found = elements_of(page)
    assert found.tags == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "h1", "script", "script"]
    assert found.texts["title"].strip() == name.replace("\u2028", "\\u2028")
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1]) == {"name": name}


@pytest.mark.parametrize("name", NASTY)
def test_what_is_shown_without_javascript_is_text_too(name):
    plain = plain_section(name, [name], [(name, name)], [(name, "data:image/png;base64,AAAA")])
    page = assemble(Page(title="a", body="<main></main>\n", plain=plain))
    found = elements_of(page)
    shown = ["section", "h2", "p", "table", "tr", "th", "td", "p", "img", "br"]
    head = ["html", "head", "meta", "meta", "meta", "title", "style", "noscript", "style", "body"]
    assert found.tags == [*head, "noscript", *shown, "main", "script", "script"]
    assert found.texts["td"].strip() == name.replace("\u2028", "\\u2028")
    assert "<noscript><style>body > :not(noscript) { display: none; }</style></noscript>" in page


def test_commands_in_backticks_are_code_in_the_cells_of_a_reader_without_javascript():
    plain = plain_section("a", [], [("note", "Give more: `beit finetune <DATA>`.", "one ` alone")])
    assert "<td>Give more: <code>beit finetune &lt;DATA&gt;</code>.</td><td>one ` alone</td>" in plain


def test_embedded_json_has_no_character_that_ends_a_script():
    text = embedded_json({"a": NASTY, "b": float("nan")})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"a": NASTY, "b": None}


def test_page_refuses_a_script_that_would_end_itself():
    with pytest.raises(ValueError, match="closing tag"):
        assemble(Page(title="a", body="", script="const text = '</script>';"))


def test_page_loads_nothing():
    page = assemble(Page(title="a", body="", data={}))
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(|\bsrc=|<link|fetch\(|XMLHttp", page)


def test_parts_are_files_of_the_package():
    assert ":root" in page_part("base.css")
    assert page_part("base.css").count("--accent:") == 3  # light, dark of the system, dark that is chosen


def test_base64_holds_the_array():
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    assert np.array_equal(np.frombuffer(base64.b64decode(base64_of(values.T)), "<f4").reshape(3, 2), values.T)


@pytest.mark.parametrize(("quality", "kind"), [(None, "PNG"), (90, "JPEG")])
def test_image_url_holds_the_picture(quality, kind):
    head, content = image_url(Image.new("RGB", (5, 4), (10, 200, 30)), quality=quality).split(",")
    assert head == f"data:image/{kind.lower()};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (image.format, image.size) == (kind, (5, 4))
