"""The Dockerfile: what it copies is there and enough to build the package; its extras and its program exist.

Building the image needs Docker and a network, which tests do not have.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.documents.reading import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied() -> list[str]:
    return [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]


def test_extras_and_program_exist() -> None:
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    (program,) = re.findall(r'ENTRYPOINT \["(\w+)"\]', DOCKERFILE)
    assert program in PROJECT["scripts"]


def test_what_is_copied_reaches_the_build() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.slow
def test_what_is_copied_makes_a_package_that_starts(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    names = {path.suffix for path in (tmp_path / "site" / "beitcli").rglob("*") if path.is_file()}
    assert {".py", ".toml", ".html", ".js", ".css"} <= names
    site = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    start = [sys.executable, "-m", "beitcli", "recipes", "small"]
    ended = subprocess.run(start, cwd=tmp_path, env=site, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert {recipe["command"] for recipe in json.loads(ended.stdout)} == {"train-tokenizer", "pretrain", "finetune"}
