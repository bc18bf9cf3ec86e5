"""The typer application: parses a command line that names a command, and gives a shell its completions.

Of the commands only those that the line names get their parameters, and only their modules are imported.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from beitcli import __version__
from beitcli.cli.command_table import ALL, BY_NAME, COMMANDS, COMPLETING, unknown_command
from beitcli.cli.options import register
from beitcli.cli.typer_commands import Program
from beitcli.config.fields import settings_of
from beitcli.config.synonyms import suggested_option
from beitcli.errors import UsageError

_TYPED = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # variables in which a shell passes the line to be completed


def run_typer(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code.

    Raises:
        UsageError: It cannot be parsed.
    """
    if COMPLETING in os.environ:
        named = {word for variable in _TYPED for word in os.environ.get(variable, "").split()} & BY_NAME.keys()
        group = build(arguments, named, own_options=True)
    else:
        word = next((word for word in arguments if not word.startswith("-")), "")
        named = BY_NAME.keys() & {word}
        group = build(arguments, named, own_options=arguments[:1] != [word] or not named)
    asked_for_all = ALL in arguments and "--" not in arguments[: arguments.index(ALL)]
    parsed = ["--help" if asked_for_all and each == ALL else each for each in arguments]
    try:
        code = group.main(args=parsed, prog_name="beit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        raise _usage_error(error, parsed) from None


def build(words: list[str], named: set[str], *, own_options: bool) -> Any:
    """Builds the parser.

    Args:
        words: The command line, without the program's name.
        named: Names of the commands that get their parameters.
        own_options: Whether to add typer's options of the program itself.
    """
    app = typer.Typer(
        name="beit",
        cls=Program,
        add_completion=own_options,
        add_help_option=own_options,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def beit(
        version: Annotated[
            bool, typer.Option("--version", "-V", help="Show the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None: ...

    for command in COMMANDS:
        if command.name in named:
            register(app, command, _all_settings, words)
        elif COMPLETING in os.environ:
            app.command(command.name, short_help=command.summary)(_nothing)
    return typer.main.get_command(app)


def _version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"beit {__version__}\n")
        raise typer.Exit


def _nothing() -> None:
    """Placeholder callback of a command that the command line does not name."""


def _all_settings() -> set[str]:
    """Names of the settings of all commands, whose modules it imports."""
    return {name for command in COMMANDS for name in settings_of(command.config)}


def _usage_error(error: typer.TyperException, arguments: list[str]) -> UsageError:
    """Converts typer's error to a `UsageError`, with the nearest spelling as hint."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    help_line = f"See `beit {name} --help`." if name in BY_NAME else "See `beit --help`."
    message = error.format_message().splitlines()[0] if error.format_message() else "No command is given."
    if hasattr(error, "option_name") and "requires an argument" in message:
        return UsageError(f"{error.option_name} needs a value.", help_line)
    if hasattr(error, "option_name") and "not take a value" in message:
        return UsageError(f"{error.option_name} takes no value.", f"Write {error.option_name}. {help_line}")
    if hasattr(error, "option_name"):
        option: str = error.option_name
        message = f"There is no option {option}" + (f" of `beit {name}`." if name in BY_NAME else ".")
        settings = settings_of(BY_NAME[name].config).values() if name in BY_NAME else ()
        shown = [setting for setting in settings if not setting.option.hidden]
        flags = [part for s in shown for flag in s.option.flags or (s.flag,) for part in flag.split("/")]
        hint = suggested_option(option, [*flags, "--json", "--quiet", "--debug", "--help", ALL])
        return UsageError(message, f"{hint} {help_line}".strip())
    if message.startswith("No such command"):
        return unknown_command(name)
    return UsageError(message, help_line)
