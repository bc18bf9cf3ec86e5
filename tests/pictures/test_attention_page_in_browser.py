"""The attention explorer in a real browser: what it reads out equals the documents, and no request leaves the page."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.config.attn_map import AttnMapConfig
from beitcli.engine.attn_map import attn_map

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: browser)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
NASTY = "<img src=x onerror=alert(1)>.png"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pretrained_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "in").mkdir()
    for number, name in enumerate((NASTY, "b.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / name)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"model": str(pretrained_run), "device": "cpu", "page_mb": 1}
    list(attn_map(AttnMapConfig(inputs=(str(folder / "in"),), output=str(folder / "page.html"), **settings)))
    return folder


@pytest.fixture(params=[1440, 390])
def page(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """The page, opened; at its end nothing has been said on the console and nothing has been asked for elsewhere."""
    url, faults = (folder / "page.html").as_uri(), []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append("a dialog"))
        page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(("data:", url)) else 0)
        page.goto(url)
        yield page
        browser.close()
    assert faults == []


def expected(folder: Path, pretrained_run: Path, command: str, image: str = NASTY) -> dict[str, Any]:
    """The entry of the document that the page's own command asks for."""
    program, name, path, *words, _, output = shlex.split(command)
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert (program, name, path) == ("beit", "attn-map", str(folder / "in" / image))
    assert output.endswith(".png")
    assert given["--model"] == str(pretrained_run)
    config = AttnMapConfig(
        inputs=(path,),
        model=given["--model"],
        device="cpu",
        point=(given["--point"],),
        layer=int(given["--layer"]),
        head=given["--head"],
    )
    return next(attn_map(config))["maps"][0]


def text(page: Any, part: str) -> str:
    return page.locator(f"#{part}").inner_text()


def share(words: str) -> float:
    """The share that words such as `12.3% at row 1, column 2` begin with."""
    return float(words.partition("%")[0]) / 100


def assert_shows(page: Any, entry: dict[str, Any]) -> None:
    """The readout equals a document's map, to the digits that are shown."""
    attention = np.array(entry["attention"])
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    assert text(page, "best").endswith(f"at row {row}, column {column}")
    assert share(text(page, "best")) == pytest.approx(attention.max(), rel=5.1e-3)
    assert share(text(page, "cls")) == pytest.approx(entry["cls"], rel=5.1e-3)
    assert text(page, "from").startswith("row {}, column {} ".format(*entry["patch"]))


def patch_centre(page: Any, row: int, column: int, grid: tuple[int, int] = (4, 4)) -> tuple[float, float]:
    box = page.locator("#stage").bounding_box()
    return box["x"] + (column + 0.5) / grid[1] * box["width"], box["y"] + (row + 0.5) / grid[0] * box["height"]


def test_every_layer_and_head_reads_what_the_document_says(page, folder, pretrained_run):
    page.locator("#stage").click(position={"x": 5, "y": 5})
    for keys in ("", "[", ",", ",,", "]", "."):
        for key in keys:
            page.keyboard.press(key)
        assert_shows(page, expected(folder, pretrained_run, text(page, "command")))
    page.select_option("#map", "rollout")
    assert_shows(page, expected(folder, pretrained_run, text(page, "command")))


def test_pin_stays_when_the_pointer_leaves_and_reads_other_patches(page, folder, pretrained_run):
    page.mouse.move(*patch_centre(page, 1, 1))
    assert text(page, "from").startswith("row 1, column 1 ")
    page.mouse.click(*patch_centre(page, 3, 2))
    assert text(page, "from").endswith(", pinned")
    page.mouse.move(*patch_centre(page, 0, 3))
    entry = expected(folder, pretrained_run, text(page, "command"))
    assert entry["patch"] == [3, 2]
    assert text(page, "under").endswith("at row 0, column 3")
    assert share(text(page, "under")) == pytest.approx(entry["attention"][0][3], rel=6e-3)
    page.mouse.move(1, 1)
    assert_shows(page, entry)
    assert text(page, "under") == "\u2013"
    page.keyboard.press("Escape")
    assert "pinned" not in text(page, "from")


def test_keys_move_the_pin_and_reach_the_class_token(page):
    page.locator("#stage").focus()
    page.mouse.click(*patch_centre(page, 0, 0))
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    assert text(page, "from").startswith("row 0, column 2 ")
    page.keyboard.press("c")
    assert text(page, "from") == "class token, pinned"
    assert page.locator("#query").is_hidden()


def press(page: Any, key: str, **modifiers: bool) -> None:
    """Presses a key as a keyboard tells it that has the character behind other keys, on what has the focus."""
    page.evaluate(
        "([key, how]) => (document.activeElement ?? document.body).dispatchEvent("
        "new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true, ...how}))",
        [key, modifiers],
    )


def test_brackets_behind_altgr_or_option_change_the_layer(page):
    first = text(page, "layer-said")
    for way in (
        {"ctrlKey": True, "altKey": True, "modifierAltGraph": True},
        {"modifierAltGraph": True},
        {"altKey": True},
    ):
        press(page, "[", **way)
        assert text(page, "layer-said") != first
        press(page, "]", **way)
        assert text(page, "layer-said") == first
    for way in ({"ctrlKey": True}, {"metaKey": True}, {"ctrlKey": True, "altKey": True}):
        press(page, "[", **way)
        assert text(page, "layer-said") == first
    press(page, "c", altKey=True)
    assert text(page, "from") != "class token, pinned"
    press(page, "C")
    assert text(page, "from") == "class token, pinned"


def until(page: Any, condition: str) -> None:
    """Waits for a condition; Playwright's own way compiles text in the page, which the page's policy forbids."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(condition)


def test_arrows_move_the_pin_on_the_image_only_and_letters_rest_in_controls(page):
    before = text(page, "from")
    page.keyboard.press("ArrowDown")
    until(page, "scrollY > 0")
    page.wait_for_timeout(500)  # a key scrolls smoothly, and would go on
    assert text(page, "from") == before
    page.evaluate("scrollTo(0, 0)")
    until(page, "scrollY === 0")
    page.mouse.click(*patch_centre(page, 1, 1))
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("ArrowDown")
    assert text(page, "from").startswith("row 2, column 1 ")
    assert page.evaluate("scrollY") == 0
    layer = text(page, "layer-said")
    for control in ("map", "share"):
        page.locator(f"#{control}").focus()
        for key in "c[":
            page.keyboard.press(key)
        assert (text(page, "layer-said"), "class token" in text(page, "from")) == (layer, False)
    page.locator("#release").focus()
    page.keyboard.press("[")
    assert text(page, "layer-said") != layer


def test_command_draws_what_the_page_shows(page):
    page.mouse.click(*patch_centre(page, 1, 1))
    words = shlex.split(text(page, "command"))
    assert not {"--smooth", "--threshold"} & set(words)
    page.locator("#share").fill("60")
    page.check("#smooth")
    *shown, output = shlex.split(text(page, "command"))
    assert shown == [*words[:-2], "--threshold", "0.6", "--smooth", "-o"]
    assert "-60percent-smooth-" in output
    layer = int(words[words.index("--layer") + 1])
    assert text(page, "layer-said") == f"{layer} (of 0 to {layer})"
    assert text(page, "share-said") == "60% of the attention"


def test_command_is_on_one_line_and_copied_whole(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.mouse.click(*patch_centre(page, 1, 1))
    lines = "(element) => element.getClientRects().length"
    assert page.locator("#command").evaluate(lines) == 1
    page.click("#copy")
    page.locator("#copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == text(page, "command")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_gallery_keeps_names_as_text_and_switches_images(page, folder, pretrained_run):
    assert text(page, "name").endswith(NASTY)
    assert page.locator("#gallery button").count() == 2
    page.locator("#gallery button").nth(1).click()
    assert text(page, "name").endswith("b.png")
    assert_shows(page, expected(folder, pretrained_run, text(page, "command"), "b.png"))


def test_the_numbered_buttons_say_what_they_pin(page):
    assert text(page, "points-name") == "Pin point"
    button = page.locator("#points button").first
    button.click()
    where = text(page, "from").partition(" (")[0]
    assert (button.text_content(), button.get_attribute("title")) == ("1", f"Reference point 1: {where}")


def test_view_is_saved_as_it_is_seen_and_the_page_is_no_wider_than_the_screen(page, tmp_path):
    page.keyboard.press("c")
    assert page.is_checked("#grey")  # heat is not mistaken for the photograph's own colours
    seen = page.evaluate("getComputedStyle(document.getElementById('photo')).filter")
    assert "grayscale" in seen
    assert float(seen.partition("brightness(")[2].rstrip(")")) > 0.9  # what is on the photograph is recognized
    assert float(page.input_value("#opacity")) < 70
    page.uncheck("#grey")
    assert page.evaluate("getComputedStyle(document.getElementById('photo')).filter") == "none"
    for name in ("smooth", "grey"):
        page.check(f"#{name}")
    with page.expect_download() as waiting:
        page.click("#save")
    assert waiting.value.suggested_filename.endswith("-mean-class-token.png")
    waiting.value.save_as(tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.width >= 448
        assert picture.height > picture.width
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
