"""`beit env`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.about import EnvConfig


def _run(config: EnvConfig, console: CommandConsole) -> None:
    from beitcli.engine.environment import describe_environment

    found = describe_environment(config)
    console.print_metrics(found if console.wants_json else {name: _words(value) for name, value in found.items()})


def _words(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value


DECLARATION = Declaration(
    config=EnvConfig,
    examples=("beit env --json > environment.json",),
    run=_run,
)
