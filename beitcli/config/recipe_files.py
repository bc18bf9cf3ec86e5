"""Recipes and files of settings, as TOML: read, and refused where they cannot be."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from beitcli.config.nearest import suggestion
from beitcli.errors import UsageError
from beitcli.escaping import shell_word

RECIPES = Path(__file__).parent.parent / "recipes"


def recipe_names(command: str) -> list[str]:
    return sorted(path.stem for path in (RECIPES / command).glob("*.toml"))


def read_recipe(command: str, name: str) -> dict[str, Any]:
    path = RECIPES / command / f"{name}.toml"
    if name not in recipe_names(command):
        names = recipe_names(command)
        raise UsageError(
            f"There is no {command} recipe '{name}'.", f"{suggestion(name, names)} Recipes: {', '.join(names)}.".strip()
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read_config_file(path: Path, command: str) -> dict[str, Any]:
    """Reads a TOML file; checks its key `command` and removes it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # whatever the locale, as TOML is
        if _has_long_number(values):
            raise ValueError("a number has more than 64 bits")
    except FileNotFoundError:
        raise UsageError(f"There is no config file '{path}'.", "Check the path given to --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file '{path}' cannot be read: {error}.", "Give a readable TOML file.") from None
    except RecursionError:
        raise UsageError(f"Config file '{path}' is nested too deeply.", "Give a TOML file of settings.") from None
    except ValueError as error:  # TOMLDecodeError, or a number of more digits than Python converts
        raise UsageError(f"Config file '{path}' is not valid TOML: {error}.", "Mend that line.") from None
    written_by = values.pop("command", command)
    if written_by != command:
        raise UsageError(
            f"'{path}' holds the settings of `beit {written_by}`, not of `beit {command}`.",
            f"Run: beit {written_by} --config {shell_word(path)}",
        )
    return values


def _has_long_number(value: Any) -> bool:
    """Whether an integer is beyond those of TOML; in hexadecimal Python reads any, and may be unable to print it.

    Raises:
        RecursionError: It is nested too deeply, by dotted keys, to be printed.
    """
    if isinstance(value, dict):
        return any(map(_has_long_number, value.values()))
    if isinstance(value, list):
        return any(map(_has_long_number, value))
    return type(value) is int and not -(1 << 63) <= value < 1 << 63
