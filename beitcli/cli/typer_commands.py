"""typer's classes of the program and of a command, with our help pages, and with words that are taken as they are.

`config/resolve.py` converts the words of the command line as it does those of a file. typer would import pydantic for
it, which takes longer than all else of a command that needs no torch.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from beitcli.cli.help_page import command_help, program_help
from beitcli.cli.streams import write_stdout


class _Words:
    """typer's conversion of one parameter, which converts nothing."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return () if value is None and (param.multiple or param.nargs == -1) else value


class Program(TyperGroup):
    """The program."""

    def get_params(self, ctx: Any) -> Any:
        return _as_written(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_stdout(program_help())  # and not by `formatter`, whose colours typer takes away from a pipe


class CommandWithPage(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> Any:
        return _as_written(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_stdout(command_help(self, ctx))


def _as_written(params: list[Any]) -> list[Any]:
    for param in params:
        param.get_runtime_param = _Words
    return params
