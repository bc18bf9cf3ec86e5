"""A page in a headless Chromium that is watched: what it says on its console, and what it asks of the network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
HOSTILE_FILE = "<img src=x onerror=alert(1)>.jpg"
WIDTHS = (1440, 390)  # pixels: a desk, a phone


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra `browser`) is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    os.environ.pop("DISPLAY", None)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def watched(browser: Any, file: Path, width: int) -> Iterator[Any]:
    """A file opened as a page of some width.

    At its end it has said nothing on the console, raised nothing, shown no dialog, asked for nothing but itself, has no
    element of a hostile name, and is no wider than the screen.
    """
    page = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append("a dialog"), dialog.dismiss()))
    own = (file.as_uri(), "data:")
    page.on("request", lambda asked: None if asked.url.startswith(own) else faults.append(asked.url))
    page.goto(file.as_uri())
    yield page
    assert faults == []
    assert page.locator("img[onerror], img[src='x']").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
