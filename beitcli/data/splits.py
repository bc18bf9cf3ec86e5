"""DATA that is divided already: folders with `train` and `val` below them, and the drawn data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def have_train_and_val(references: Iterable[str]) -> bool:
    """Whether each DATA has a split to learn from and one to measure on."""
    return all(name == "sample" or all((Path(name) / s).is_dir() for s in ("train", "val")) for name in references)
