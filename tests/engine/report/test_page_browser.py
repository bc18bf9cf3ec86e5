"""The report in a real browser: no request, no error, foreign names as text, curves and previews by keyboard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beitcli.engine.report.page import report_page
from tests.engine.report.test_document import HOSTILE, classified, write_run

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra `browser`) is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    os.environ.pop("DISPLAY", None)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("several", [False, True], ids=["one", "two"])
def test_the_report_is_read_scrubbed_and_asks_nothing_of_the_network(
    browser: Any, tmp_path: Path, width: int, several: bool
) -> None:
    run = classified(write_run(tmp_path / "a"), [HOSTILE, "dog"], [[0, 0, 4], [1, 1, 3], [0, 1, 1]])
    runs = [run, write_run(tmp_path / "b", lr=0.01)] if several else [run]
    (tmp_path / "page.html").write_text(report_page(runs))
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url) if not asked.url.startswith("data:") else None)
    page.goto((tmp_path / "page.html").as_uri())

    assert "It is learning: 4.0% of the hidden tokens right" in page.text_content("#runs")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img[onerror], img[src='x']").count() == 0
    assert HOSTILE in page.text_content("#classes")
    assert page.locator("#differing").is_visible() is several

    # a curve, by its keys: the last held-out loss is 6
    chart = page.locator("#charts figure", has=page.locator("figcaption", has_text="loss")).first
    chart.locator("svg").focus()
    page.keyboard.press("End")
    assert "step 40" in chart.locator(".readout").text_content()
    assert "held-out images 6" in chart.locator(".readout").text_content()
    page.keyboard.press("Home")
    assert "step 1" in chart.locator(".readout").text_content()

    # previews, by the slider's keys and by the buttons
    assert page.text_content("#preview-step") == "step 40"
    last = page.get_attribute("#preview-pictures img", "src")
    page.focus("#scrub")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#preview-step") == "step 10"
    assert page.get_attribute("#preview-pictures img", "src") != last
    page.click("#later")
    assert page.get_attribute("#preview-pictures img", "src") == last

    # the logarithm and the smoothing draw again; a head of the table sorts
    for change in ("#log", "#smooth"):
        before = chart.locator("svg").inner_html()
        page.check(change) if change == "#log" else page.fill(change, "0.9")
        assert chart.locator("svg").inner_html() != before
    page.locator("#classes th button").first.click()
    assert page.locator("#classes tbody tr").first.text_content().startswith(HOSTILE)
    assert [url for url in requests if not url.startswith("file:")] == []
    assert complaints == []
    page.close()
