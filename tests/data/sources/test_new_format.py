"""A format of DATA that another package adds with one file: it goes through the commands, help and errors know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODULE = '''
"""Stacks of images: FILE.npy of (N, H, W, 3) uint8."""

from io import BytesIO

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Format
from beitcli.errors import DataError


class Stack(Source):
    def __init__(self, path):
        self.name, self.array = path, np.load(path, mmap_mode="r")
        if self.array.ndim != 4:
            raise DataError(f"'{path}' is no stack of images.")

    def __len__(self):
        return len(self.array)

    def path(self, index):
        return f"{self.name}/{index}"

    def read(self, index):
        file = BytesIO()
        Image.fromarray(np.asarray(self.array[index])).save(file, "PNG")
        return file.getvalue()


FORMAT = Format(
    looks=".npy stacks",
    open=lambda paths, request: [Stack(path) for path in paths],
    recognizes=lambda path: path.endswith(".npy"),
    rank=45,
)
'''


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the package, and a train and a val stack of 16 and 4 images."""
    root = tmp_path_factory.mktemp("added")
    (root / "stacks.py").write_text(MODULE)
    info = root / "stacks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stacks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beitcli.data.sources.formats]\nnpy = stacks\n")
    rng = np.random.default_rng(0)
    for name, count in (("train", 16), ("val", 4)):
        np.save(root / f"{name}.npy", rng.integers(0, 256, (count, 32, 32, 3), np.uint8))
    return root


def run(added: Path, *words: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(added), *filter(None, sys.path)])
    command = [sys.executable, "-m", "beitcli", *map(str, words)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=added)


def in_one_line(shown: str) -> str:
    return " ".join(shown.replace("│", " ").split())


@pytest.mark.slow
def test_added_format_goes_through_pretrain_and_tokenize(added: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    settings = ("--tokenizer", tokenizer_run, "--device", "cpu", "--workers", 0, "--json")
    done = run(
        added, "pretrain", "train.npy", "--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--steps", 2,
        "--batch-size", 4, "--out", tmp_path / "run", *settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images_seen"] == 8
    assert "Data: 16 images" in done.stderr
    done = run(added, "tokenize", "train.npy", "val.npy", "--split", "val", "--size", 16, *settings)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [f"val.npy/{index}" for index in range(4)]
    assert {len(line["tokens"]) for line in lines} == {16}


def test_added_format_is_named_by_help_and_errors(added: Path) -> None:
    (added / "a.pdf").write_bytes(b"%PDF")
    assert ".npy stacks" in in_one_line(run(added, "tokenize", "--help").stdout)
    done = run(added, "mask-preview", "a.pdf", "-o", "a.png")
    assert (done.returncode, ".npy stacks" in done.stderr) == (3, True)


def test_added_format_is_not_imported_for_help(added: Path) -> None:
    script = (
        "import sys; from beitcli.cli.app import main; code = main(['pretrain', '--help']); "
        "heavy = {'torch', 'numpy', 'PIL', 'stacks', 'beitcli.engine'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    path = os.pathsep.join([str(added), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ".npy stacks" in in_one_line(done.stdout)


def test_added_format_has_its_own_errors(added: Path) -> None:
    np.save(added / "flat.npy", np.zeros(3))
    done = run(added, "mask-preview", "flat.npy", "-o", "a.png")
    assert (done.returncode, "is no stack of images" in done.stderr) == (3, True)
