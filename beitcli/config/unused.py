"""Settings that would have no effect beside others: refused, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beitcli.config.fields import Setting, task_of
from beitcli.config.random_weights import RANDOM
from beitcli.errors import UsageError


def refuse_unused(
    settings: Mapping[str, Setting], config: Any, layers: list[tuple[str, dict[str, Any]]], below: Mapping[str, Any]
) -> None:
    """Raises UsageError for a setting that only other tasks use, or that has no effect beside or without another one.

    Beside what `Option.unused` says, a job's `unused_with` and `unused_without` name, by a setting, those that have no
    effect where it is given or is not, and `of_random_init` those of which only a model of random weights takes a flag.

    A file may contain one with its previous value, because config.toml used to hold the settings of all tasks. One in
    the environment may be meant for another command, and is ignored.

    Args:
        below: Values of the recipe, or of the run that is resumed.
    """
    task = task_of(config)
    for layer, values in layers:
        for name, value in values.items():
            setting = settings[name]
            as_it_was = layer == "environment" or (layer == "file" and value in (setting.default, below.get(name)))
            if as_it_was:
                continue
            given = f"{name} in {config.config}" if layer == "file" else setting.flag
            is_given = value or (value in (0, False) and setting.default is None)  # else it is none of the thing
            if layer == "flag" and not (getattr(config, "resume", False) and value == below.get(name)):
                _refuse_beside_weights(config, settings, name)
            for by, chosen, instead in setting.option.unused:
                if is_given and getattr(config, by, None) == chosen:
                    word = f"beit {config.command}" if settings[by].option.argument else settings[by].flag
                    other = f"another {settings[by].flag}"
                    raise UsageError(
                        f"{given} has no effect with {word} {chosen}.",
                        f"Give {instead}, or {other}." if instead else f"Leave it out, or give {other}.",
                    )
            for other, has_none in _unused_beside(config, name) if is_given else ():
                if has_none == (getattr(config, other) == settings[other].default):
                    beside = f"{'without' if has_none else 'with'} {settings[other].flag}"
                    raise UsageError(f"{given} has no effect {beside}.", "Leave it out.")
            if setting.belongs_to(task):
                continue
            raise UsageError(
                f"{given} is a setting of --task {' or '.join(setting.option.tasks)}; this is --task {task}.",
                f"Leave it out, or give --task {setting.option.tasks[0]}.",
            )


def _refuse_beside_weights(config: Any, settings: Mapping[str, Setting], name: str) -> None:
    """Raises UsageError for a setting that only `--init random` uses, where the start is another model."""
    for by, names in getattr(config, "of_random_init", {}).items():
        if name in names and getattr(config, by) != RANDOM:
            model = f"{settings[by].flag} {getattr(config, by)}"
            raise UsageError(
                f"{settings[name].flag} has no effect with {model}, which has its own.",
                f"Leave it out, or give {settings[by].flag} {RANDOM}.",
            )


def _unused_beside(config: Any, name: str) -> Iterator[tuple[str, bool]]:
    """Yields each setting that a setting depends on, and whether it has no effect without it, or else with it."""
    for kind, has_none in (("unused_with", False), ("unused_without", True)):
        yield from ((other, has_none) for other, names in getattr(config, kind, {}).items() if name in names)
