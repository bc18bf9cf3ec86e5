"""What held before a setting existed, for the config.toml of a run that an earlier version wrote (stdlib only)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beitcli.config.fields import Setting

_RUNS_HEADER = re.compile(r"# beit \S+ Repeat: ")


def earlier_settings(settings: Mapping[str, Setting], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the earlier values of the settings that a run's config.toml lacks.

    Args:
        stored: Of config.toml; it has no settings of other tasks than its own.
    """
    task = stored.get("task", settings["task"].default) if "task" in settings else None
    return {
        name: setting.option.earlier
        for name, setting in settings.items()
        if setting.option.earlier is not None and name not in stored and setting.belongs_to(task)
    }


def add_earlier(
    settings: Mapping[str, Setting], values: dict[str, Any], path: Path, requested: Mapping[str, Any]
) -> tuple[str, ...]:
    """Adds them to the settings of a file that a run wrote, or its copy; a run that repeats it does the same.

    Args:
        values: Of the file.
        requested: What is given beside, which goes before.

    Returns:
        A note of those that are not the defaults.
    """
    if not _is_of_run(path):
        return ()
    added = {name: value for name, value in earlier_settings(settings, values).items() if name not in requested}
    if (task := requested.get("task")) is not None:
        added = {name: value for name, value in added.items() if settings[name].belongs_to(task)}
    values |= added
    changed = [f"{name} = {json.dumps(value)}" for name, value in added.items() if value != settings[name].default]
    note = f"'{path}' is of an earlier version, where it was {', '.join(changed)}; so it is here."
    return (note,) if changed else ()


def _is_of_run(path: Path) -> bool:
    """Whether a readable file of settings was written by a run, which says all of them, or is a copy of such a one."""
    if not path.is_file():  # a pipe, which is read
        return False
    with path.open(encoding="utf-8-sig") as file:
        return _RUNS_HEADER.match(file.readline()) is not None
