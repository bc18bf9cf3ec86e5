"""State, step and figures of a run folder, from small files alone, without torch."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from beitcli.runtime.metric_text import HELD_OUT
from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.storage.run_lock import is_locked
from beitcli.runtime.storage.safe_json import parse_json

State = Literal["running", "done", "stopped", "empty", "damaged"]
_LARGEST_FILE = 4 << 20  # of config.toml and trainer.json, which have a few kB
_TAIL = 1 << 20


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        run: Its folder.
        state: `running` (a process holds its lock), `done` (it has all its steps and its model card), `stopped` (it
            can be resumed), `empty` (no checkpoint yet, nor one of its own tokenizer) or `damaged` (its files cannot be
            read).
        step: That of the newest checkpoint; the last logged one of a run that has no checkpoint, or that goes on and
            has logged one since it was begun or resumed.
        when: Of the last change, in seconds since 1970; of a run that goes on, at least of when it was begun.
        figures: Of held-out images, at the newest checkpoint or the last one before that was measured; without any,
            of the last logged step.
        tokenizer_step: That of its own tokenizer, while the run itself has no checkpoint.
    """

    run: str
    command: str
    recipe: str | None
    state: State
    step: int
    when: float
    figures: dict[str, float]
    tokenizer_step: int | None = None


def read_run(path: Path) -> Run:
    """Reads one run; files that are missing or damaged leave their facts out."""
    settings: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        settings = settings_of_run(path)
    newest = newest_folder(path / "checkpoints")
    newest_line, measured = _newest_lines(path / "metrics.jsonl")
    trainer = document_in(newest, "trainer.json")
    trained = {name: value for name, value in newest_line.items() if name not in ("step", "epoch", "lr")}
    figures = as_mapping(trainer.get("figures")) or measured or trained
    step = trainer.get("step", newest_line.get("step"))
    tokenizer = newest_folder(path / "tokenizer" / "checkpoints") if newest is None else None
    tokenizer_step = None if tokenizer is None else _step_of(tokenizer)
    state = _state(path, newest, tokenizer, trainer)
    changed = [path / "config.toml", path / "metrics.jsonl", path / "tokenizer" / "metrics.jsonl"]  # not the report
    if newest is not None:
        changed.append(newest / "trainer.json")
    if state == "running":  # its checkpoint may be far behind
        changed.append(path / ".lock")
        step = _later(trainer.get("step"), _logged_since_held(path, path / "metrics.jsonl"))
        if newest is None and step is None:
            tokenizer_step = _later(tokenizer_step, _logged_since_held(path, path / "tokenizer" / "metrics.jsonl"))
    return Run(
        run=str(path),
        command=str(settings.get("command", "?")),
        recipe=settings.get("recipe") if isinstance(settings.get("recipe"), str) else None,
        state=state,
        step=step if is_step(step) else 0,
        when=max((each.stat().st_mtime for each in changed if each.exists()), default=0.0),
        figures={n: float(v) for n, v in finite_numbers(figures).items()},
        tokenizer_step=tokenizer_step,
    )


def _logged_since_held(run: Path, log: Path) -> Any:
    """Returns the last step of a log, without the lines of an earlier attempt; None if it has no line since.

    Whoever resumes a run writes its lock, and later the log up to the step that it goes on from.
    """
    with suppress(OSError):
        if log.stat().st_mtime_ns >= (run / ".lock").stat().st_mtime_ns:
            return _newest_lines(log)[0].get("step")
    return None


def _later(step: Any, logged: Any) -> int | None:
    """Returns the later of two steps of files, which may be anything."""
    return max((each for each in (step, logged) if is_step(each)), default=None)


def _step_of(checkpoint: Path) -> int | None:
    """Returns the step in the name of a checkpoint's folder."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and len(digits) < 19 else None


def _state(path: Path, newest: Path | None, tokenizer: Path | None, trainer: dict[str, Any]) -> State:
    """Returns the state; `trainer` is the newest checkpoint's trainer.json.

    Runs of earlier versions do not say how many steps they are to have: the times of their files tell, as long as the
    run was not copied.
    """
    if is_locked(path / ".lock"):
        return "running"
    if newest is None:
        return "empty" if tokenizer is None else "stopped"
    step, planned = trainer.get("step"), trainer.get("planned_steps")
    if is_step(step) and is_step(planned):
        return "done" if step >= planned and (path / "README.md").is_file() else "stopped"
    with suppress(OSError):
        if (path / "README.md").stat().st_mtime >= (newest / "trainer.json").stat().st_mtime:
            return "done"
    return "stopped"


def newest_folder(folder: Path) -> Path | None:
    with suppress(OSError):
        return max((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: path.name, default=None)
    return None


def _newest_lines(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the last whole line of metrics.jsonl, and the metrics of the last one with held-out images.

    The latter without their prefix; {} where there is none, in the last megabyte.
    """
    newest: dict[str, Any] = {}
    for line in newest_documents(path):
        newest = newest or line
        measured = {name.removeprefix(HELD_OUT): value for name, value in line.items() if name.startswith(HELD_OUT)}
        if measured:
            return newest, measured
    return newest, {}


def newest_documents(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the whole lines in the last megabyte of a JSON Lines file, the last one first."""
    lines: list[bytes] = []
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read(_TAIL).splitlines()
    for text in reversed(lines):
        with suppress(ValueError):
            yield as_mapping(parse_json(text))


def settings_of_run(path: Path) -> dict[str, Any]:
    """Returns config.toml of a run. Raises OSError or ValueError if it cannot be read."""
    try:
        return tomllib.loads(small_text(path / "config.toml"))
    except RecursionError:
        raise ValueError("config.toml is nested too deeply") from None


def is_step(value: Any) -> TypeGuard[int]:
    """Whether a value of a file is a number of steps."""
    return type(value) is int and 0 <= value < 1 << 63


def finite_numbers(values: dict[str, Any]) -> dict[str, float]:
    """Returns the values that are finite numbers; JSON may hold NaN, and integers beyond every float."""
    return {name: value for name, value in values.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def document_in(folder: Path | None, name: str) -> dict[str, Any]:
    """Returns a small JSON document of a checkpoint; empty if there is none or it cannot be read."""
    with suppress(OSError, ValueError):
        return {} if folder is None else as_mapping(parse_json(small_text(folder / name)))
    return {}


def small_text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:  # a pipe would be waited for
        raise ValueError("no small file")
    return path.read_text(encoding="utf-8-sig")
