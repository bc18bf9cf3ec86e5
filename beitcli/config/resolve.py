"""Merges settings: flag > `BEIT_*` environment variable > `--config FILE.toml` > `--recipe NAME` > default.

Some settings exclude each other (`steps` and `epochs`). A layer that sets one clears the other in the layers below; a
layer that sets both is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from beitcli.config.earlier import add_earlier, earlier_settings
from beitcli.config.fields import Setting, coerce, settings_of, task_of, with_origins
from beitcli.config.nearest import suggestion
from beitcli.config.random_weights import without_weights
from beitcli.config.recipe_files import read_config_file, read_recipe
from beitcli.config.synonyms import suggested_setting
from beitcli.config.tasks import TASKS
from beitcli.config.toml_text import setting_text
from beitcli.config.unused import refuse_unused
from beitcli.errors import UsageError

EXCLUSIVE = (("steps", "epochs"), ("num_masked", "ratio"), ("warmup_steps", "warmup_epochs"))
_OTHERS = ("CACHE_DIR", "DEBUG", "LAUNCH", "LAUNCHER", "STREAM_CACHE_GB", "TERMINAL_IMAGES")
RESERVED_VARIABLES = {f"BEIT_{name}" for name in _OTHERS}

Config = TypeVar("Config")


@dataclass(frozen=True)
class Resolved(Generic[Config]):
    """A validated config, and the layer that each value came from.

    Attributes:
        origins: Setting name -> "flag", "environment", "file", "recipe" or "default".
        notes: What the user should know.
    """

    config: Config
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


def default_recipe(config_class: type, settings: Mapping[str, Setting], requested: Mapping[str, Any]) -> str:
    """Returns the recipe used if none is named: that of the task, or of another setting in the job's `recipes_of`."""
    task = TASKS.entries().get(str(requested.get("task"))) if "task" in settings else None
    if task and task.recipe:
        return task.recipe
    for name, recipes in getattr(config_class, "recipes_of", {}).items():
        if requested.get(name) in recipes:
            return recipes[requested[name]]
    return settings["recipe"].default


def recipe_settings(
    config_class: type, settings: Mapping[str, Setting], name: str, requested: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the settings of a recipe, by name, overridden by the job's `instead_of_recipe`."""
    command: str = config_class.command  # type: ignore[attr-defined]
    values = _coerced(settings, read_recipe(command, name), f"recipe {name}")
    for setting, otherwise in getattr(config_class, "instead_of_recipe", {}).items():
        values |= otherwise.get(without_weights(requested.get(setting)), {})
    return values


def _coerced(settings: Mapping[str, Setting], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    coerced = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in settings:
            raise UsageError(
                f"Unknown key '{key}' in {where}.",
                suggested_setting(name, settings) or f"Known: {', '.join(settings)}.",
            )
        coerced[name] = coerce(settings[name], value, f"{key} in {where}")
    return coerced


def _environment(
    settings: Mapping[str, Setting], environ: Mapping[str, str], known_elsewhere: Callable[[], set[str]]
) -> dict[str, Any]:
    values = {}
    for variable, text in environ.items():
        if not variable.startswith("BEIT_") or variable in RESERVED_VARIABLES:
            continue
        name = variable[5:].lower()
        if name in settings:
            values[name] = coerce(settings[name], text, variable)
        elif name not in (all_names := settings.keys() | known_elsewhere()):
            variables = {each.upper() for each in all_names} | {
                each.removeprefix("BEIT_") for each in RESERVED_VARIABLES
            }
            hint = suggestion(variable.removeprefix("BEIT_"), variables, prefix="BEIT_")
            raise UsageError(
                f"Environment variable {variable} names no setting.", hint or f"Unset it: unset {variable}"
            )
    return values


def resolve(
    config_class: type[Config],
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    known_elsewhere: Callable[[], set[str]] = set,
) -> Resolved[Config]:
    """Resolves the config of a command.

    Args:
        flags: Values given on the command line, by setting name.
        environ: Environment variables; None ignores them (a call from Python).
        known_elsewhere: Returns the settings of other commands, which the environment may also set.
    """
    command: str = config_class.command  # type: ignore[attr-defined]
    settings = settings_of(config_class)
    given = {name: coerce(settings[name], value, settings[name].flag) for name, value in flags.items()}
    variables = _environment(settings, environ or {}, known_elsewhere)
    file: dict[str, Any] = {}
    config_path = given.get("config", variables.get("config"))
    if config_path:
        file = _coerced(settings, read_config_file(Path(config_path), command), config_path)
    notes = _without_caches(settings, file, str(config_path), variables | given)
    if config_path:
        notes += add_earlier(settings, file, Path(config_path), variables | given)
    layers: list[tuple[str, dict[str, Any]]] = [("file", file), ("environment", variables), ("flag", given)]
    requested = file | variables | given
    if "out" in settings and requested.get("resume"):
        saved = Path(requested.get("out") or "") / "config.toml"
        if not requested.get("out"):
            raise UsageError("--resume needs the run to go on with.", "Add --out RUN.")
        if saved.is_file():
            return _resumed(config_class, settings, saved, layers, notes)
        if "data" in settings and not requested.get("data"):  # with DATA the run starts here
            beside = [each.name for each in saved.parent.parent.glob("*")] if saved.parent.parent.is_dir() else []
            raise UsageError(
                f"There is no run at '{saved.parent}' to go on with.",
                suggestion(saved.parent.name, beside) or "Give the --out that it was started with, or DATA to begin.",
            )
    of_recipe: dict[str, Any] = {}
    if "recipe" in settings:
        name = requested.get("recipe") or default_recipe(config_class, settings, requested)
        of_recipe = recipe_settings(config_class, settings, name, requested)
    values, origins = merge(settings, [("recipe", of_recipe), *layers])
    if "recipe" in settings:
        values["recipe"] = name
    _require_all(command, settings, values)
    config = with_origins(config_class(**values), origins)
    refuse_unused(settings, config, layers, of_recipe)
    return Resolved(config, origins, notes)


def _resumed(
    config_class: type[Config],
    settings: Mapping[str, Setting],
    saved: Path,
    layers: list[tuple[str, dict[str, Any]]],
    notes: tuple[str, ...],
) -> Resolved[Config]:
    """Resolves the config of a resumed run: its saved settings, of which only harmless ones may change."""
    stored = _coerced(settings, read_config_file(saved, config_class.command), str(saved))  # type: ignore[attr-defined]
    notes += _without_caches(settings, stored, str(saved), layers[-1][1] | layers[-2][1])
    stored |= earlier_settings(settings, stored)
    before = config_class(**stored)
    values, origins = merge(settings, [("run", stored), *layers])
    _require_all(config_class.command, settings, values)  # type: ignore[attr-defined]
    now = config_class(**values)
    differences = [
        _difference(setting, before, now)
        for name, setting in settings.items()
        if setting.option.saved
        and not setting.option.may_change_on_resume
        and getattr(before, name) != getattr(now, name)
        if setting.belongs_to(task_of(before))
    ]
    if differences:
        raise UsageError(
            "These settings differ from the run's own: " + "; ".join(differences) + ".",
            "Leave them out to go on as it was, or start a new run with another --out.",
        )
    refuse_unused(settings, now, layers, stored)
    return Resolved(with_origins(now, origins), origins, notes)


def _difference(setting: Setting, before: Any, now: Any) -> str:
    was, given = setting_text(setting, before), setting_text(setting, now)
    if getattr(before, setting.name) is None:
        return f"{setting.flag} {given} is given, and the run began without it"
    if getattr(now, setting.name) is None:
        return f"the run began with {setting.flag} {was}"
    return f"{setting.flag}: the run has {was}, given is {given}"


def _without_caches(
    settings: Mapping[str, Setting], values: dict[str, Any], where: str, requested: Mapping[str, Any]
) -> tuple[str, ...]:
    """Removes from a file's values the folders to write to; returns a note for each that nobody gives beside."""
    named = [name for name in values if settings[name].option.is_cache and values[name] is not None]
    return tuple(
        f"{name} = '{value}' of '{where}' is left out: a file may not say where to write. "
        f"Give {settings[name].flag} {value}."
        for name, value in [(name, values.pop(name)) for name in named]
        if requested.get(name) is None
    )


def merge(
    settings: Mapping[str, Setting], layers: list[tuple[str, dict[str, Any]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges layers, lowest first; returns the values, and the layer that each came from."""
    values: dict[str, Any] = {}
    origins = dict.fromkeys(settings, "default")
    for origin, layer in layers:
        for first, second in EXCLUSIVE:
            if layer.get(first) is not None and layer.get(second) is not None:
                raise UsageError(
                    f"{settings[first].flag} and {settings[second].flag} exclude one another; both were given.",
                    "Give one of them.",
                )
            for one, other in ((first, second), (second, first)):
                if layer.get(one) is not None and other in settings:
                    values[other] = None
        for name, value in layer.items():
            values[name] = _joined(values.get(name, ()), value) if settings[name].option.keyed else value
        origins |= dict.fromkeys(layer, origin)
    return values, origins


def _joined(below: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the NAME=VALUE items of both; of one name, the last of `above`, in the place of that of `below`."""
    named = {item.partition("=")[0]: item for item in (*below, *above)}
    return tuple(named.values())


def _require_all(command: str, settings: Mapping[str, Setting], values: Mapping[str, Any]) -> None:
    """Raises UsageError for a required setting without a value; the message says how the arguments were interpreted."""
    for name, setting in settings.items():
        if setting.option.required and not values.get(name, setting.default):
            single = {s.flag: values.get(s.name) for s in settings.values() if s.option.argument and not s.many}
            taken = ", ".join(f"{flag} is taken as '{value}'" for flag, value in single.items() if value)
            raise UsageError(
                f"{taken}, and {setting.flag} is missing." if taken else f"{setting.flag} is missing.",
                f"Write `{_usage(command, settings)}` ({setting.flag}, {_within(setting.help)}).",
            )


def _within(help: str) -> str:
    """Returns a help text as a part of a sentence."""
    return (help[:1].lower() + help[1:] if help[1:2].islower() else help).rstrip(".")


def _usage(command: str, settings: Mapping[str, Setting]) -> str:
    """Returns the shortest valid command line: `beit predict MODEL INPUT...`."""
    words = [f"beit {command}"]
    for setting in settings.values():
        if setting.option.argument:
            words.append(setting.flag + ("..." if setting.many else ""))
        elif setting.option.required:
            words.append(f"{setting.flag} {setting.option.metavar or '|'.join(setting.choices)}")
    return " ".join(words)
