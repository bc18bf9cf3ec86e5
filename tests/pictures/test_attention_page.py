"""The page that is asked patch by patch: whole in one file, safe with any file name, true to the numbers."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures import colormap
from beitcli.pictures.attention_page import attention_page

GREY = Image.new("RGB", (60, 40), (100, 100, 100))
GRID = (2, 3)


def random_attention(heads: int = 2) -> np.ndarray:
    rows = np.random.default_rng(4).random((heads, 7, 7)).astype(np.float32)
    return rows / rows.sum(axis=-1, keepdims=True)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_page_holds_every_query_of_the_mean_and_of_each_head():
    attention = random_attention()
    maps = data_of(attention_page(GREY, attention, GRID, title="a"))["maps"]
    assert [each["name"] for each in maps] == ["mean", "0", "1"]
    for each, rows in zip(maps, (attention.mean(axis=0), *attention), strict=True):
        strongest = unpacked(each["strongest"], "<f4")
        weights = unpacked(each["weights"], "u1").reshape(6, 6)
        assert np.abs(weights / 255 * strongest[:, None] - rows[1:, 1:]).max() <= strongest.max() / 510 + 1e-7
        assert (weights.max(axis=1) == 255).all()
        assert np.array_equal(unpacked(each["cls"], "<f4"), rows[1:, 0])


def test_page_says_what_it_opens_on():
    page = attention_page(
        GREY, random_attention(), GRID, title="a", points=[(1, 2)], head=1, threshold=0.6, box=(1, 2, 7, 6)
    )
    data = data_of(page)
    assert data["points"] == [[1, 2]]
    assert (data["start"], data["share"], data["box"]) == ("1", 0.6, [1, 2, 7, 6])
    assert (
        unpacked(data["palette"], "u1").reshape(256, 3)[255].tolist() == colormap.apply(np.ones((1, 1)))[0, 0].tolist()
    )


def test_page_keeps_only_the_mean_where_heads_are_too_many_and_says_so():
    attention = random_attention(heads=3)
    whole = attention_page(GREY, attention, GRID, title="a", head=2)
    page = attention_page(GREY, attention, GRID, title="a", head=2, max_bytes=300)
    assert "left out" not in whole
    assert "3 heads are left out" in page
    assert [each["name"] for each in data_of(page)["maps"]] == ["mean"]
    assert data_of(page)["start"] == "mean"


def test_page_stays_within_the_limit_it_counts_with():
    page = attention_page(GREY, random_attention(), GRID, title="a")
    stored = sum(len(each[key]) for each in data_of(page)["maps"] for key in ("weights", "strongest", "cls"))
    just_enough = attention_page(GREY, random_attention(), GRID, title="a", max_bytes=stored)
    assert len(data_of(just_enough)["maps"]) == 3


def test_page_makes_no_request():
    page = attention_page(GREY, random_attention(), GRID, title="a")
    written = re.sub(r"[A-Za-z0-9+/=]{40,}", "", page)  # base64 may spell anything
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=(?!\"data:)|<link|fetch|XMLHttp", written)
    assert "default-src 'none'" in page


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.tags[-1] if self.tags else "", data)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a\"b&c'.png", "@@DATA@@", "bild-ü.png", "\udcff.png"])
def test_page_shows_any_name_as_text(name):
    page = attention_page(GREY, random_attention(), GRID, title=name, detail=name)
    shown = name.replace("\udcff", "\\udcff")
    texts = Texts()
    texts.feed(page.encode().decode())
    assert texts.tags.count("script") == 2
    assert (texts.text["h1"], texts.text["p"]) == (shown, shown)


def test_page_has_a_scale_that_every_map_sets_anew():
    page = attention_page(GREY, random_attention(), GRID, title="a")
    for part in ("bar", "mark", "even", "most"):
        assert f'id="{part}"' in page
        assert f'part("{part}")' in page
    assert "drawScale(map.strongest[query]" in page.split("function update()")[1]


def test_page_leaves_no_placeholder():
    assert "@@" not in attention_page(GREY, random_attention(), GRID, title="a")


@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 7, 6), (7, 7, 7, 1)])
def test_page_refuses_attention_that_does_not_fit_the_grid(shape):
    with pytest.raises(ValueError, match="does not fit"):
        attention_page(GREY, np.ones(shape), GRID, title="a")
