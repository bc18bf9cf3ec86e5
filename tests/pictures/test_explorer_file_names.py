"""What the attention explorer calls a picture of its view: in the command and in the download, by patch and layer."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from beitcli.config.attn_map import AttnMapConfig
from beitcli.engine.attn_map import attn_map
from tests.conftest import save_picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: browser)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_each_view_has_a_file_of_its_own_with_the_layer_that_the_page_says(
    tmp_path: Path, pretrained_run: Path
) -> None:
    image = save_picture(tmp_path / "a b.png", (120, 130, 90), 1, (80, 80))
    torch.manual_seed(0)
    page_file = tmp_path / "page.html"
    list(attn_map(AttnMapConfig(inputs=(str(image),), output=str(page_file), model=str(pretrained_run), device="cpu")))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(page_file.as_uri())
        box = page.locator("#stage").bounding_box()
        names = []
        for column in (0.5, 1.5):
            page.mouse.click(box["x"] + column / 4 * box["width"], box["y"] + 1.5 / 4 * box["height"])
            names.append(shlex.split(page.locator("#command").inner_text())[-1])
        page.check("#smooth")
        names.append(shlex.split(page.locator("#command").inner_text())[-1])
        with page.expect_download() as waiting:
            page.click("#save")
        saved = waiting.value.suggested_filename
        layer = page.locator("#layer-said").inner_text().split()[0]
        browser.close()
    assert names == [
        f"a_b-layer{layer}-mean-row1-column0.png",
        f"a_b-layer{layer}-mean-row1-column1.png",
        f"a_b-layer{layer}-smooth-mean-row1-column1.png",
    ]
    assert saved == names[-1]
