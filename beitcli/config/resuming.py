"""The command that goes on with a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beitcli.config.fields import Setting, settings_of

_OF_ONE_COMMAND = ("out", "resume", "config", "dry_run")
_OF_LAUNCH = ("device", "gpus", "nodes", "shard", "in_memory", "token_cache")  # what a run may not fit in without


def resuming_words(config_class: Any, run: str, values: Mapping[str, Any]) -> list[str]:
    """Returns the words of the command that resumes a run as it was: on that device, with as many processes.

    They repeat what config.toml does not hold, or what is not taken from there.

    Args:
        config_class: Subclass of `Training`.
        values: Settings of the command that was stopped, by name, or the words given for them; those that were not
            given may be left out. Not those of a config.toml: it holds none of these, unless a stranger wrote it.
    """
    words = ["beit", config_class.command, "--out", run, "--resume"]
    for setting in settings_of(config_class).values():
        value = values.get(setting.name)
        if not _is_lost(setting) or value is None or str(value) == str(setting.default):
            continue
        words += [setting.flag] if setting.kind is bool else [setting.flag, str(value)]
    if "--nodes" in words and "--rdzv-endpoint" not in words:
        words += ["--rdzv-endpoint", "HOST:PORT"]
    return words


def resuming_note(config_class: Any) -> str:
    """Returns the sentence for the command of a run whose own command is not known any more."""
    settings = settings_of(config_class)
    *flags, last = (settings[name].flag for name in _OF_LAUNCH if name in settings and _is_lost(settings[name]))
    return f"Add {', '.join(flags)} and {last} as before, where they were given: a run does not store them."


def _is_lost(setting: Setting) -> bool:
    """Whether `--resume` does not take it from config.toml."""
    return (not setting.option.saved or setting.option.is_cache) and setting.name not in _OF_ONE_COMMAND
