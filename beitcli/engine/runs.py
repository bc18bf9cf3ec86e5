"""`beit runs`: the runs below a folder, their state and their figures, from small files alone, without torch."""

from __future__ import annotations

import fcntl
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from beitcli.config.about import RunsConfig
from beitcli.errors import DataError, UsageError
from beitcli.runtime.storage.safe_json import parse_json

State = Literal["running", "done", "stopped", "empty", "damaged"]
_LARGEST_FILE = 4 << 20  # of config.toml and trainer.json, which have a few kB
_TAIL = 1 << 16
_LESS_IS_BETTER = ("loss", "mae", "entropy")
_FACTS = ("run", "state", "step", "when")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        run: Its folder.
        state: `running` (a process holds its lock), `done` (it has its model card), `stopped` (it can be resumed),
            `empty` (no checkpoint yet) or `damaged` (its files cannot be read).
        step: That of the newest checkpoint, or of the last logged step if there is none.
        when: Of the last change, in seconds since 1970.
        figures: Of the newest checkpoint, else of the last logged step.
    """

    run: str
    command: str
    recipe: str | None
    state: State
    step: int
    when: float
    figures: dict[str, float]


def list_runs(config: RunsConfig) -> list[Run]:
    """Returns the runs at any depth below `config.folder`, those inside of runs left out, sorted as asked.

    Raises:
        DataError: There is no such folder, or no run in it.
        UsageError: No run has the figure to sort by.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}'.", "Give the folder that holds your runs.")
    runs = [_read_or_name(path) for path in _folders(folder)]
    if not runs:
        raise DataError(f"'{folder}' holds no runs.", "`beit pretrain sample --recipe tiny` makes one.")
    return _sorted(runs, config.sort)


def _sorted(runs: list[Run], key: str) -> list[Run]:
    if key in _FACTS:
        return sorted(runs, key=lambda each: getattr(each, key), reverse=key in ("step", "when"))
    has = [each for each in runs if key in each.figures]
    if not has:
        known = sorted({name for each in runs for name in each.figures})
        raise UsageError(f"No run has a figure '{key}'.", f"Sort by {', '.join(_FACTS)}, or by {', '.join(known)}.")
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


def read_run(path: Path) -> Run:
    """Reads one run; files that are missing or damaged leave their facts out."""
    settings: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        settings = tomllib.loads(_small(path / "config.toml"))
    newest = _newest(path / "checkpoints")
    last = _last_line(path / "metrics.jsonl")
    trainer: dict[str, Any] = {}
    if newest is not None:
        with suppress(OSError, ValueError):
            trainer = _mapping(parse_json(_small(newest / "trainer.json")))
    figures = _mapping(trainer.get("figures")) or {n: v for n, v in last.items() if n not in ("step", "epoch", "lr")}
    step = trainer.get("step", last.get("step", 0))
    return Run(
        run=str(path),
        command=str(settings.get("command", "?")),
        recipe=settings.get("recipe") if isinstance(settings.get("recipe"), str) else None,
        state=_state(path, newest),
        step=step if isinstance(step, int) else 0,
        when=max((each.stat().st_mtime for each in (path, path / "metrics.jsonl") if each.exists()), default=0.0),
        figures={n: float(v) for n, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)},
    )


def _state(path: Path, newest: Path | None) -> State:
    if _is_locked(path / ".lock"):
        return "running"
    if newest is None:
        return "empty"
    with suppress(OSError):
        if (path / "README.md").stat().st_mtime >= (newest / "trainer.json").stat().st_mtime:
            return "done"
    return "stopped"


def _is_locked(file: Path) -> bool:
    """Whether a process holds a run's lock. A shared lock is tried, for an instant."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def _newest(folder: Path) -> Path | None:
    with suppress(OSError):
        return max((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: path.name, default=None)
    return None


def _last_line(path: Path) -> dict[str, Any]:
    """Returns the last whole line of a JSON Lines file; {} if there is none."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            return _mapping(parse_json(line))
    return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _small(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:  # a pipe would be waited for
        raise ValueError("no small file")
    return path.read_text(encoding="utf-8-sig")


def age(when: float) -> str:
    """Returns how long ago a time was, such as "3 h ago"."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
