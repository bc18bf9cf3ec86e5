"""Common parts of the API functions: settings, events, errors."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from beitcli.cli.console import CommandConsole
from beitcli.cli.multi_process import shutdown
from beitcli.config.common import Job, Launched, Training
from beitcli.config.fields import settings_of
from beitcli.config.resolve import Resolved, resolve
from beitcli.config.synonyms import suggested_setting
from beitcli.config.tokenize import TokenizeConfig
from beitcli.errors import BeitError, UsageError
from beitcli.runtime.distributed.rank_env import rank_info_from_env

if TYPE_CHECKING:
    from beitcli.engine.events import OnEvent

Reference = str | os.PathLike[str]
References = Reference | Sequence[Reference]
Config = TypeVar("Config", bound=Job)
_has_failed = False  # whether the last job of this process ended with an error


def resolve_call(
    kind: type[Config], role: str, data: Any, settings: dict[str, Any], model: Any = None, *, dry_run: bool = False
) -> Resolved[Config]:
    """Returns the config of a call, and what the user should know of it.

    Args:
        role: Name of the setting that `data` sets: `data` or `inputs`.
        model: The setting `model`, for functions that take it first, or a config.
        dry_run: Return the plan of a training job.

    Raises:
        UsageError: A setting is wrong or missing, or is given in addition to a config.
    """
    with hints_as_notes():
        given = data if model is None else model
        if isinstance(given, Job):
            beside = [*settings, *(["dry_run"] if dry_run else []), *([role] if model is not None and data else [])]
            resolved = Resolved(_whole(kind, given, beside), {})
        else:
            named = settings | ({"dry_run": True} if dry_run else {}) | ({} if model is None else {"model": model})
            listed = [data] if isinstance(data, str | os.PathLike) else list(data)
            resolved = resolve(kind, _flags(kind, named | ({role: listed} if listed else {})))
        config = resolved.config
        if isinstance(config, Training) and config.dry_run and not dry_run:  # the return type is a report
            raise UsageError(
                "The config asks for a dry run.", "Give dry_run=True by keyword: the call returns the plan."
            )
        _require_possible(config)
        return resolved


def _whole(kind: type[Config], config: Job, beside: list[str]) -> Config:
    """Checks a config that is passed as an object."""
    if not isinstance(config, kind):
        raise UsageError(
            f"{type(config).__name__} is given, and {kind.__name__} is needed.", f"Give a {kind.__name__}."
        )
    if beside:
        raise UsageError(
            f"{kind.__name__} holds every setting, and {', '.join(beside)} is given beside it.",
            "Change the config with dataclasses.replace, or give all settings by keyword.",
        )
    return config


def _require_possible(config: Job) -> None:
    """Raises UsageError for settings that a call from Python does not support."""
    if isinstance(config, TokenizeConfig) and not config.inputs:
        raise UsageError("inputs is empty.", "Name images, or '-' for paths on stdin.")
    if isinstance(config, Launched) and (config.gpus > 1 or config.nodes > 1) and rank_info_from_env() is None:
        raise UsageError(
            f"gpus is {config.gpus}, and a call from Python starts no processes.",
            f"Run `beit {config.command} ... --gpus {config.gpus}`, or start the script with torchrun.",
        )


def _flags(kind: type[Job], settings: dict[str, Any]) -> dict[str, Any]:
    """Converts settings to what `resolve` takes, with paths as str; raises UsageError for an unknown one."""
    all_settings = settings_of(kind)
    for name in settings:
        if name not in all_settings:
            hint = suggested_setting(name, all_settings) or f"Settings: {', '.join(all_settings)}."
            raise UsageError(f"{kind.command} has no setting '{name}'.", hint)
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@contextmanager
def hints_as_notes() -> Iterator[None]:
    """Context that adds the hint of a BeitError to its traceback, below the message."""
    try:
        yield
    except BeitError as error:
        if error.hint and error.hint not in getattr(error, "__notes__", ()):  # by an inner call
            error.add_note(error.hint)
        raise


@contextmanager
def event_handler(progress: bool, on_event: OnEvent | None, notes: Sequence[str] = ()) -> Iterator[OnEvent]:
    """Yields the handler for a job's events: `on_event`, or the progress display on stderr (of rank 0 only).

    Args:
        notes: What the user should know of the settings; warnings of rank 0 before the first event.
    """
    from beitcli.engine.events import Warned

    place = rank_info_from_env()
    if place is not None:
        atexit.unregister(_leave)
        atexit.register(_leave)  # not after each job: the script's next job uses the same process group
    shell = CommandConsole(quiet=not progress or (place is not None and place.rank > 0))
    global _has_failed
    _has_failed = False
    try:
        with hints_as_notes():
            handler = on_event or shell.on_event
            for said in notes if place is None or place.rank == 0 else ():
                handler(Warned(said))
            yield handler
    except Exception:
        _has_failed = True
        raise
    finally:
        shell.close()


def _leave() -> None:
    """Leaves the process group at the end of a script, but not if its last job or the script itself has failed."""
    if not _has_failed and not hasattr(sys, "last_value"):  # which Python sets to an error that nobody caught
        shutdown()
