"""The attention explorer: whole in one file, safe with any file name, true to the numbers."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from beitcli.escaping import shell_line
from beitcli.pictures import colormap
from beitcli.pictures.attention_page import (
    ExploredImage,
    Explorer,
    Storage,
    attention_page,
    choose_storage,
    packed_layer,
)

GREY = Image.new("RGB", (60, 40), (100, 100, 100))
EXPLORER = Explorer(model="runs/a", grid=(2, 3), depth=2, heads=2, layer=1, storage=Storage(16, 8, "all"))


def random_attention(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(4).random((*shape, 7, 7)).astype(np.float32)
    return rows / rows.sum(axis=-1, keepdims=True)


HEADS, ROLLOUTS = random_attention(2, 2), random_attention(2)


def explored(name: str = "a", explorer: Explorer = EXPLORER) -> ExploredImage:
    layers = [packed_layer(explorer, layer, HEADS[layer], ROLLOUTS[layer]) for layer in range(2)]
    return ExploredImage(name, GREY, (1, 2, 7, 6), [(1, 2)], layers, ["beit", "attn-map", name])


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(packed: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, 7, 6) attention to patches, (K, 7) of the strongest, (K, 7) to the class token, as the page reads them."""
    kind, steps = ("u1", 255) if packed["bits"] == 8 else ("<u2", 65535)
    most, cls = (np.frombuffer(base64.b64decode(packed[key]), "<f4").reshape(-1, 7) for key in ("most", "cls"))
    weights = np.frombuffer(base64.b64decode(packed["weights"]), kind).reshape(-1, 7, 6)
    return weights / steps * most[..., None], most, cls


@pytest.mark.parametrize(("bits", "head_bits"), [(16, 8), (16, 16), (8, 8)])
def test_page_holds_every_query_of_every_map(bits, head_bits):
    explorer = replace(EXPLORER, storage=Storage(bits, head_bits, "all"))
    (image,) = data_of(attention_page([explored(explorer=explorer)], explorer))["images"]
    for layer, stored in enumerate(image["layers"]):
        maps = {"mean": HEADS[layer].mean(axis=0)[None], "rollout": ROLLOUTS[layer][None], "heads": HEADS[layer]}
        for name, rows in maps.items():
            attention, most, cls = unpacked(stored[name])
            steps = 255 if (head_bits if name == "heads" else bits) == 8 else 65535
            assert np.abs(attention - rows[..., 1:]).max() <= most.max() / (2 * steps) + 1e-7
            assert np.array_equal(most, rows[..., 1:].max(axis=-1))
            assert np.array_equal(cls, rows[..., 0])


def test_page_says_what_it_opens_on():
    explorer = replace(EXPLORER, head="1", threshold=0.6, smooth=True)
    data = data_of(attention_page([explored()], explorer))
    assert data["start"] == {"layer": 1, "head": "1", "share": 0.6, "smooth": True}
    assert (data["images"][0]["points"], data["images"][0]["box"]) == ([[1, 2]], [1, 2, 7, 6])
    palette = np.frombuffer(base64.b64decode(data["palette"]), "u1").reshape(256, 3)
    assert palette[255].tolist() == colormap.apply(np.ones((1, 1)))[0, 0].tolist()


def test_several_images_are_one_page():
    page = attention_page([explored("a.jpg"), explored("b.jpg")], EXPLORER)
    assert [image["name"] for image in data_of(page)["images"]] == ["a.jpg", "b.jpg"]
    assert "<title>a.jpg and 1 more: attention</title>" in page


def test_page_leaves_out_heads_that_do_not_fit_and_says_so():
    assert 'leftOut":""' in attention_page([explored()], EXPLORER)
    for heads, layers, said in (("one", [False, True], "other layers"), ("none", [False, False], "all layers")):
        explorer = replace(EXPLORER, head="1", storage=Storage(16, 8, heads))
        data = data_of(attention_page([explored(explorer=explorer)], explorer))
        assert [layer["heads"] is not None for layer in data["images"][0]["layers"]] == layers
        assert said in data["leftOut"]
        assert "--page-mb" in data["leftOut"]
        assert data["start"]["head"] == ("1" if heads == "one" else "mean")


def test_storage_is_the_most_complete_that_fits():
    """BEiT-B at 224 pixels, 12 x 12 heads of 197 x 196: 5.56 M values, 7.4 MB as base64 of 8 bits."""
    base = (14, 14), 12, 12
    chosen = {mb: choose_storage(*base, 1, mb * 10**6) for mb in (20, 12, 4, 2)}
    assert chosen[20] == Storage(16, 16, "all")
    assert chosen[12] == Storage(16, 8, "all")
    assert chosen[4] == Storage(16, 8, "one")
    assert chosen[2] == Storage(8, 8, "one")
    assert choose_storage(*base, 6, 12 * 10**6) == Storage(8, 8, "one")
    assert choose_storage(*base, 10**6, 1) == Storage(8, 8, "none")


@pytest.mark.parametrize("storage", [Storage(16, 16, "all"), Storage(16, 8, "one"), Storage(8, 8, "none")])
def test_storage_is_chosen_by_what_is_stored(storage):
    """BEiT-S's 14 x 14 patches in 2 blocks of 2 heads; what is stored is within 1 % of what is counted with."""
    explorer = replace(EXPLORER, grid=(14, 14), storage=storage)
    rows = np.ones((2, 197, 197), np.float32) / 197
    packed = [maps for layer in range(2) for maps in packed_layer(explorer, layer, rows, rows[0]).values() if maps]
    stored = sum(len(maps[key]) for maps in packed for key in ("weights", "most", "cls"))
    assert choose_storage((14, 14), 2, 2, 1, round(1.01 * stored)) == storage
    assert choose_storage((14, 14), 2, 2, 1, round(0.99 * stored)) != storage or storage == Storage(8, 8, "none")


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.jpg", "a\"b&c'.png", "{{data}}", "\udcff\u2028.png"])
def test_page_shows_any_name_as_text(name):
    page = attention_page([explored(name)], replace(EXPLORER, model=name)).encode().decode()
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    shown = name.replace("\udcff", "\\udcff").replace("\u2028", "\\u2028")
    assert (data_of(page)["images"][0]["name"], data_of(page)["model"]) == (shown, shown)
    assert data_of(page)["images"][0]["command"] == shell_line(["beit", "attn-map", name])


def test_page_loads_nothing():
    written = re.sub(r"[A-Za-z0-9+/=]{40,}", "", attention_page([explored()], EXPLORER))  # base64 may spell anything
    assert not re.search(r"https?:|@import|url\(|\bsrc=(?!.data:)|<link|fetch\(|XMLHttp", written)


def test_a_reader_without_javascript_sees_what_is_there_and_how_to_draw_it():
    page = attention_page([explored("a.jpg"), explored("b.jpg")], EXPLORER)
    plain = re.search(r"<body>\n<noscript>(.*?)</noscript>", page, re.DOTALL)[1]
    assert plain.count('<img src="data:image/jpeg;base64,') == 2
    assert "beit attn-map IMAGE --model runs/a -o map.png" in plain
    assert "<td>2 layers of 2 heads, 2 x 3 patches</td>" in plain


def test_script_finds_every_part_that_it_names():
    page = attention_page([explored()], EXPLORER)
    named = set(re.findall(r'part\("([\w-]+)"\)', page)) | {"cls-name", "key-cls", "smooth", "grey", "grid"}
    assert named <= set(re.findall(r'id="([\w-]+)"', page))


@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 7, 6), (7, 7, 7)])
def test_page_refuses_attention_that_does_not_fit_the_grid(shape):
    with pytest.raises(ValueError, match="does not fit"):
        packed_layer(EXPLORER, 0, np.ones(shape), np.ones((7, 7)))


def test_page_of_no_images_is_refused():
    with pytest.raises(ValueError, match="no images"):
        attention_page([], EXPLORER)
