"""The `beit` executable: `main(argv)` answers one command line and returns the exit code.

The help and version of the program, and a word that is no command, need no parser; all else is parsed by
`cli/typer_app.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from beitcli import __version__
from beitcli.cli.command_table import ALL, BY_NAME, COMMANDS, COMPLETING, HELP, unknown_command
from beitcli.cli.console import CommandConsole
from beitcli.cli.help_page import program_help
from beitcli.cli.streams import close_stdout, open_closed_streams, stdout_error, write_stdout
from beitcli.errors import BeitError
from beitcli.runtime.distributed.parent_death import end_with_launcher
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import note_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code, as listed in `beitcli.errors`."""
    arguments = _help_as_option(list(sys.argv[1:] if argv is None else argv))
    open_closed_streams()
    console = CommandConsole(debug="--debug" in arguments)
    try:
        code = _answer(arguments)
        sys.stdout.flush()
        return code
    except BeitError as error:
        console.print_error(error)
        return error.exit_code
    except BrokenPipeError:
        close_stdout()
        return 0
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        close_stdout()  # typer exits with 1 if the pipe that its help goes to is closed
        return 0
    except (OSError, MemoryError, ImportError, RuntimeError) as error:  # outside any command
        if isinstance(error, OSError) and error.filename is None:  # of stdout, when help or a version is written
            named: BeitError | None = stdout_error(error)
        else:
            named = shortage(error)
        if named is None:
            raise
        console.print_error(named)
        return named.exit_code


def _answer(arguments: list[str]) -> int:
    if COMPLETING not in os.environ:
        if arguments == ["--man", "--help"]:  # `beit help --man`
            from beitcli.cli.man_page import man_page

            write_stdout(man_page(COMMANDS))
            return 0
        if arguments in ([], ["-h"], ["--help"], [ALL]):
            write_stdout(program_help() + "\n")
            return 0 if arguments else 2
        if arguments in (["-V"], ["--version"]):
            write_stdout(f"beit {__version__}\n")
            return 0
        if not arguments[0].startswith("-") and arguments[0] not in BY_NAME:
            raise unknown_command(arguments[0])
    from beitcli.cli.typer_app import run_typer

    return run_typer(arguments)


def _help_as_option(arguments: list[str]) -> list[str]:
    """`beit help` and `beit help COMMAND` are `beit --help` and `beit COMMAND --help`; `beit help --man` is roff."""
    if arguments[:1] != [HELP[0]]:
        return arguments
    about = [word for word in arguments[1:] if word not in (HELP[0], "-h", "--help")][:1]
    return [ALL] if about == [ALL] else [*about, "--help"]


def run() -> None:
    """Entry point of console scripts that an earlier version installed; `beitcli.__main__` hears signals sooner."""
    note_signals()
    end_with_launcher()
    sys.exit(main())
