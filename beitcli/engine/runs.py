"""`beit runs`: the runs below a folder, their state and their figures, from small files alone, without torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from beitcli.config.about import RUN_FACTS, RunsConfig
from beitcli.engine.report.run_state import Run, read_run
from beitcli.errors import DataError, UsageError

_LESS_IS_BETTER = ("loss", "mae", "entropy", "error")


def list_runs(config: RunsConfig) -> list[Run]:
    """Returns the runs at any depth below `config.folder`, those inside of runs left out, sorted as asked.

    Raises:
        DataError: There is no such folder, or no run in it.
        UsageError: No run has the figure to sort by.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        way_out = "Give the folder that holds your runs; `beit pretrain sample --recipe tiny` makes one in runs/."
        raise DataError(f"There is no folder '{folder}'.", way_out)
    runs = [_read_or_name(path) for path in _folders(folder)]
    if not runs:
        raise DataError(f"'{folder}' holds no runs.", "`beit pretrain sample --recipe tiny` makes one.")
    return _sorted(runs, config.sort)


def _sorted(runs: list[Run], key: str) -> list[Run]:
    if key in RUN_FACTS:
        return sorted(runs, key=lambda each: getattr(each, key), reverse=key in ("step", "when"))
    has = [each for each in runs if key in each.figures]
    if not has:
        metric_names = sorted({name for each in runs for name in each.figures})
        raise UsageError(
            f"No run has a figure '{key}'.", f"Sort by {', '.join(RUN_FACTS)}, or by {', '.join(metric_names)}."
        )
    less = any(word in key for word in _LESS_IS_BETTER)
    return sorted(has, key=lambda each: each.figures[key], reverse=not less) + [
        each for each in runs if key not in each.figures
    ]


def _folders(top: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(top):
        if "config.toml" in files:
            folders.clear()  # its tokenizer and its checkpoints are its own
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _read_or_name(path: Path) -> Run:
    """Reads one run; of one that may not be read, or whose files are hostile, the name alone."""
    try:
        return read_run(path)
    except (OSError, ValueError, RecursionError, OverflowError):
        return Run(str(path), "?", None, "damaged", 0, 0.0, {})


def age(when: float) -> str:
    """Returns how long ago a time was, such as "3 h"."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "<1 min"
