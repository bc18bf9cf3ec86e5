"""`import beitcli`: light, lazy, complete, and known to type checkers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import beitcli

HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "typer", "rich", "safetensors")


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = run_python("import sys, beitcli; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "beitcli" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_loads_no_other_module_of_its_own() -> None:
    assert run_python("import sys, beitcli; print(*[m for m in sys.modules if m.startswith('beitcli')])") == "beitcli\n"


def test_functions_and_configs_load_no_torch_before_they_are_called() -> None:
    names = [name for name in beitcli.__all__ if not name.endswith("Report") and name != "Tokenizer"]
    program = f"import sys, beitcli; [getattr(beitcli, name) for name in {names!r}]; print('torch' in sys.modules)"
    assert run_python(program) == "False\n"


def test_a_wrong_setting_is_told_before_torch_is_loaded() -> None:
    program = (
        "import sys, beitcli\n"
        "try: beitcli.pretrain('photos/', batch_sise=8)\n"
        "except beitcli.UsageError as error: print(error, error.__notes__, 'torch' in sys.modules)"
    )
    assert run_python(program) == "pretrain has no setting 'batch_sise'. [\"Did you mean 'batch_size'?\"] False\n"


def test_dir_lists_every_public_name() -> None:
    assert set(beitcli.__all__) <= set(dir(beitcli))
    assert sorted(beitcli.__all__) == beitcli.__all__


@pytest.mark.parametrize("name", [name for name in beitcli.__all__ if name != "__version__"])
def test_every_public_name_is_the_object_that_type_checkers_see(name: str) -> None:
    tree = ast.parse(Path(beitcli.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    modules = {alias.name: node.module for node in guarded.body for alias in node.names}  # type: ignore[attr-defined]
    found = getattr(beitcli, name)
    assert found.__name__ == name
    assert found is getattr(importlib.import_module(modules[name]), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'beitcli' has no attribute 'pretrian'"):
        _ = beitcli.pretrian  # type: ignore[attr-defined]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(beitcli.__file__).parent / "py.typed").is_file()
