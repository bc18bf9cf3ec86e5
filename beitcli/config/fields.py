"""Dataclass fields with command-line options: one declaration gives the default, the flag, the help and the TOML key.

A setting is declared only in the config class. The command line takes its options from there, `resolve` the keys and
types, and `config.toml` the order.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from beitcli.config.bounds import UNBOUNDED, Bounds
from beitcli.config.nearest import suggestion
from beitcli.errors import UsageError

Size = tuple[int, int]  # (H, W), in pixels or in patches
_SIZE = re.compile(r"\s*([0-9]{1,9})\s*(?:[,x]\s*([0-9]{1,9})\s*)?")


class Unused(NamedTuple):
    """A value of another setting, `by`, with which a setting has no effect.

    Attributes:
        instead: What has that effect there, such as `--set width=N`; empty if nothing has.
    """

    by: str
    value: str
    instead: str = ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """Command-line option of a setting.

    Attributes:
        help: One line of help, with the unit, or a function that returns it, called when needed.
        flags: Spellings; empty means `--name-with-dashes`.
        panel: Heading in `--help`.
        argument: Whether it is a positional argument.
        required: Whether a missing value is an error.
        saved: Written to `config.toml`. Settings that identify one run (`out`, `resume`) are not.
        may_change_on_resume: Whether `--resume` may change it.
        metavar: Placeholder of the value in the help.
        example: Example of a size, for the error message.
        bounds: Of a number, or of each side of a size.
        tasks: Values of `task` that use the setting; empty: all.
        unused: Values of other settings with which this one has no effect, so is refused.
        unused_by: Tasks of MODEL, and problems of a classifier, for which it has no effect, so is refused.
        is_cache: Whether it names a folder that is written to beside the output; only the command line, the
            environment and Python may, as a settings file may be a stranger's.
        keyed: Whether the items of a list are NAME=VALUE, of which a layer replaces only those that it names.
        earlier: Value for a run whose config.toml is older than the setting, if that is not the default.
        suffixes: Of the file that it names, where others are refused before any work.
        choices: Returns the allowed values, of each item if it is a list, where they are not a `Literal`, as those of
            a registry; called when needed.
        synonyms: Other words -> the choices that they stand for.
        offered: What a shell completes where other values are taken too; of a file name its suffixes.
        hidden: Whether no help has it: it is there to be refused with the reason.
    """

    help: str | Callable[[], str]
    flags: tuple[str, ...] = ()
    panel: str = "Options"
    argument: bool = False
    required: bool = False
    saved: bool = True
    may_change_on_resume: bool = False
    metavar: str | None = None
    example: str = "192,256"
    bounds: Bounds = UNBOUNDED
    tasks: tuple[str, ...] = ()
    choices: Callable[[], tuple[str, ...]] | None = None
    earlier: Any = None
    keyed: bool = False
    is_cache: bool = False
    suffixes: tuple[str, ...] = ()
    unused: tuple[Unused, ...] = ()
    unused_by: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    offered: tuple[str, ...] = ()
    hidden: bool = False


def option(
    default: Any,
    help: str | Callable[[], str],
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **how: Any,
) -> Any:
    """Returns a dataclass field with its `Option`; `ge`, `gt`, `le` and `lt` are its bounds."""
    bounds = Bounds(ge=ge, gt=gt, le=le, lt=lt)
    return field(default=default, metadata={"option": Option(help=help, bounds=bounds, **how)})


@dataclass(frozen=True)
class Setting:
    """A field of a config class, with its type resolved."""

    name: str
    kind: Any
    optional: bool
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Spelling used in error messages."""
        if self.option.argument:
            return self.option.metavar or self.name.upper()
        long = [flag for flag in self.option.flags if flag.startswith("--")]
        return long[0].partition("/")[0] if long else "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        return self.option.help if isinstance(self.option.help, str) else self.option.help()

    @property
    def choices(self) -> tuple[str, ...]:
        if self.option.choices is not None:
            return self.option.choices()
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def many(self) -> bool:
        """Whether the value is a list, of any length."""
        return get_origin(self.kind) is tuple and self.kind != Size

    @property
    def is_number(self) -> bool:
        """Whether the value is a number, or a size."""
        return self.kind in (int, float, Size)

    def belongs_to(self, task: str | None) -> bool:
        """Whether a job with this `task` uses the setting."""
        return not self.option.tasks or task in self.option.tasks

    def plain(self, value: Any) -> Any:
        """Returns the value as a user would write it: one side for a square."""
        return value[0] if self.kind == Size and value is not None and value[0] == value[1] else value


_SETTINGS: dict[type, dict[str, Setting]] = {}  # by class: reading type hints takes 1 to 2 ms


def settings_of(config_class: type) -> dict[str, Setting]:
    """Returns the settings of a config class by name, in the order of declaration; do not modify the result."""
    if config_class not in _SETTINGS:
        _SETTINGS[config_class] = _read_settings(config_class)
    return _SETTINGS[config_class]


def _read_settings(config_class: type) -> dict[str, Setting]:
    hints = get_type_hints(config_class)
    found = {}
    for entry in fields(config_class):
        how = entry.metadata.get("option")
        if how is None:
            continue
        kind, optional = hints[entry.name], False
        if get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(part for part in get_args(kind) if part is not type(None))
            optional = True
        default = None if entry.default is MISSING else entry.default
        found[entry.name] = Setting(entry.name, kind, optional, default, how)
    return found


def check_bounds(config: Any) -> None:
    """Raises UsageError for the first number of a config that is out of bounds; None is allowed."""
    for name, setting in settings_of(type(config)).items():
        value = getattr(config, name)
        if setting.is_number and value is not None:
            hint = f"Leave {setting.flag} out for the recipe's value, or the default."
            for each in value if isinstance(value, tuple) else (value,):
                setting.option.bounds.require(setting.flag, each, hint)


def with_origins(config: Any, origins: dict[str, str]) -> Any:
    """Returns the config of a `Job` with where its values came from, for checks that the running job makes."""
    return replace(config, origins=origins) if hasattr(config, "origins") else config


def refuse_unused_by(config: Any, kinds: Iterable[str], model: str) -> None:
    """Raises UsageError for the first setting that is not at its default and has no effect on the model.

    One that came from a variable may be meant for another command, and is left.

    Args:
        config: A `Job`, whose `origins` say where each value came from.
        kinds: The task of the model, and the problem of a classifier.
        model: What it is, for the message.
    """
    for name, setting in settings_of(type(config)).items():
        if config.origins.get(name) == "environment":
            continue
        if getattr(config, name) != setting.default and not set(kinds).isdisjoint(setting.option.unused_by):
            raise UsageError(f"{setting.flag} has no effect on '{config.model}', {model}.", "Leave it out.")


_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def coerce(setting: Setting, value: Any, origin: str) -> Any:
    """Converts `value` to the setting's type.

    Args:
        origin: Source of the value, for the message: `--lr`, `BEIT_LR`, `lr in run.toml`.
    """
    kind = setting.kind
    if value is None and setting.optional:
        return None
    if setting.choices and not setting.many:
        return _chosen(setting, value, origin)
    if kind == Size:
        return _size(setting, value, origin)
    if setting.many:
        values = value.split(";") if isinstance(value, str) else value
        if not isinstance(values, list | tuple):
            raise UsageError(f"{origin} is {value!r}; a list is needed.", "Write it as ['a', 'b'].")
        if setting.choices:  # names, which hold neither sign
            names = [name.strip() for each in values for name in re.split("[,;]", str(each))]
            return tuple(_chosen(setting, name, origin) for name in dict.fromkeys(names) if name)
        inner = get_args(kind)[0]
        return tuple(_scalar(inner, item, origin) for item in values)
    return _scalar(kind, value, origin)


def _chosen(setting: Setting, value: Any, origin: str) -> Any:
    value = setting.option.synonyms.get(value, value) if isinstance(value, str) else value
    if value in setting.choices:
        return value
    hint = suggestion(str(value), setting.choices) or f"One of: {', '.join(setting.choices)}."
    raise UsageError(f"{origin} is '{value}', which is no choice.", hint)


def _size(setting: Setting, value: Any, origin: str) -> Size:
    """Parses (H, W) from `224`, `192,256`, `192x256` or [192, 256]."""
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        sides = [int(side) for side in found.groups() if side] if found else []
    else:
        sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2) or not all(type(side) is int and side > 0 for side in sides):
        raise UsageError(
            f"{origin} is {value!r}; one side or H,W is needed, in whole numbers from 1.",
            f"Write it as in {setting.flag} {setting.option.example}.",
        )
    return sides[0], sides[-1]


def _scalar(kind: type, value: Any, origin: str) -> Any:
    expected = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}[kind]
    example = {
        int: "Give one such as 8.",
        float: "Give one such as 3 or 0.5.",
        bool: "Write true or false.",
        str: "Put it in quotes.",
    }
    wrong = UsageError(f"{origin} is {value!r}; {expected} is needed.", example[kind])
    if kind in (int, float) and isinstance(value, str) and value.startswith("--"):
        wrong = UsageError(f"{origin} needs a value; '{value}' follows it.", f"Give {expected}.")
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in _TRUE | _FALSE:
            return str(value).lower() in _TRUE
        raise wrong
    if kind is str:
        if isinstance(value, str):
            return value
        raise wrong
    if isinstance(value, bool):
        raise wrong
    try:
        if kind is int and isinstance(value, float) and value != int(value):
            raise wrong
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None


def task_of(config: Any) -> str | None:
    """Returns the task of a finetuning, whose settings depend on it; None of other commands."""
    return getattr(config, "task", None)
