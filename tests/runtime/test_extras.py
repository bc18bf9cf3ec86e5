"""What a message says to install is what the extra of pyproject.toml has."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import beitcli
from beitcli.runtime.extras import EXTRAS, install_line

PROJECT = Path(beitcli.__file__).parent.parent / "pyproject.toml"


@pytest.mark.parametrize("extra", EXTRAS)
def test_libraries_of_an_extra_are_those_of_the_project(extra: str) -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert list(EXTRAS[extra]) == declared[extra]


def test_the_line_names_libraries_and_not_this_project() -> None:
    assert install_line("hub") == "pip install 'pyarrow>=17'"
    assert install_line("onnx") == "pip install 'onnx>=1.18' 'onnxruntime>=1.22' 'onnxscript>=0.5'"
    folder = PROJECT.parent / "beitcli"
    naming = [path for path in folder.rglob("*.py") if "pip install 'beit-cli" in path.read_text(encoding="utf-8")]
    assert naming == []
