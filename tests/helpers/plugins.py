"""Packages outside the program that add to its registries by entry point, installed into a folder of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def install(name: str, group: str, entry: str, folder: Path) -> None:
    """Puts the module or package `name` of this folder below `folder`, as pip would, with one entry point.

    Args:
        entry: Its name in the registry, whose group is `group`.
    """
    package = HERE / name
    if package.is_dir():
        shutil.copytree(package, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        folder.mkdir(exist_ok=True)
        shutil.copy(package.with_suffix(".py"), folder)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {name}\n")


def beit_with(folder: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    """One command line in a process of its own that has what is installed in `folder`."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))
    words = [sys.executable, "-m", "beitcli", *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=os.environ | {"PYTHONPATH": path})
