"""The page of `beit doctor` in a real browser: its numbers are those of --json, its names are text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.doctor.test_doctor import photo
from tests.helpers.browser import HOSTILE_FILE, WIDTHS, chromium, watched

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image that cannot be read, a PNG with the name of a JPEG, and 104 tiny images."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    photo(0).save(folder / HOSTILE_FILE, "PNG")
    for number in range(1, 105):
        photo(number, (16, 12)).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_has_the_findings_of_json(browser: Any, beit: Callable, folder: Path, width: int) -> None:
    file = folder.parent / "page.html"
    (report,) = beit("doctor", folder, "-o", file, "--json", "--workers", 0).lines
    kinds = {"warning": "Warning: ", "note": "Note: "}
    with watched(browser, file, width) as page:
        titles = page.locator("#findings h2").all_text_contents()
        assert titles == [kinds[each["severity"]] + each["what"] for each in report["findings"]]
        assert "106 images" in page.text_content("#verdict")
        assert "1 cannot be read" in page.text_content("#verdict")
        assert HOSTILE_FILE in page.text_content(".finding.misnamed")
        assert page.text_content(".finding.unreadable .frame") == "cannot be read"
        command = "beit finetune LABELLED --init hf://microsoft/beit-base-patch16-224-pt22k --recipe base-22k"
        command += " --batch-size 32 --lr 1.25e-4"
        assert command in page.locator("#findings code").all_text_contents()
        assert "`" not in page.text_content("#findings")
        rows = (
            "(word) => Array.from(word.childNodes).map((text) => { const range = document.createRange(); "
            "range.selectNodeContents(text); return range.getClientRects().length; })"
        )
        for word in ("--init", "--drop"):
            assert page.locator("#findings .word", has_text=word).first.evaluate(rows) == [1]
        (tiny,) = (each for each in report["findings"] if each["kind"] == "tiny")
        assert (tiny["images"], len(tiny["examples"])) == (104, 100)
        assert page.text_content(".finding.tiny .more") == "80 more; --json names the first 100."
        assert page.locator(".finding.tiny img").count() == 24
