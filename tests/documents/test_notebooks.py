"""The notebooks run from the first cell to the last, with small settings, and their pictures are pictures."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.documents.reading import ROOT

NOTEBOOKS = ROOT / "docs" / "notebooks"


def cells(name: str) -> list[str]:
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def last_values(sources: list[str]) -> list[Any]:
    """Runs cells as a kernel does, in one namespace, and returns the value of each cell's last line, or None."""
    names: dict[str, Any] = {}
    shown = []
    for source in sources:
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None)
    return shown


@pytest.mark.slow
def test_the_first_run(tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = f'recipe="tiny", steps=2, batch_size=8, device="cpu", workers=0, tokenizer={str(tokenizer_run)!r}, '
    small += "image_size=32, num_masked=6, limit=100"
    sources = [source.replace('recipe="tiny"', small) for source in cells("first-run")]
    few = '"recipe": "tiny", "steps": 2, "batch_size": 8, "device": "cpu", "workers": 0'
    shown = last_values(
        [source.replace('"recipe": "tiny"', few).replace('"limit": 500', '"limit": 50') for source in sources]
    )
    assert Path(shown[0]).is_dir()
    with shown[2] as preview:
        assert isinstance(preview, Image.Image)
    assert shown[4].endswith("/runs/notebook-finetuned/report.html")


def test_features(labelled_folder: Path, pretrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = cells("features")
    assert '"runs/notebook", "photos"' in sources[0]
    sources[0] = sources[0].replace('"runs/notebook", "photos"', f"{str(pretrained_run)!r}, {str(labelled_folder)!r}")
    shape, neighbours, sheet, heat = last_values(sources)
    assert shape[0] == 24
    assert len(neighbours) == 5
    assert all(-1 <= cosine <= 1 for _, cosine in neighbours)
    assert sheet.size == (576, 96)
    assert heat.size == (192, 192)
    assert heat.getextrema()[1] == 255
