"""The `beit` executable: registers the commands; `main(argv)` returns the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from beitcli import __version__
from beitcli.cli.commands import (
    attn_map,
    cache,
    doctor,
    embed,
    env,
    eval,
    export,
    finetune,
    inspect,
    mask_preview,
    pack,
    predict,
    pretrain,
    recipes,
    report,
    runs,
    tokenize,
    train_tokenizer,
)
from beitcli.cli.console import CommandConsole
from beitcli.cli.options import ALL, COMPLETING, register
from beitcli.cli.streams import close_stdout, open_closed_streams, stdout_error, write_stdout
from beitcli.config.fields import settings_of, suggestion
from beitcli.errors import BeitError, UsageError
from beitcli.runtime.distributed.parent_death import end_with_launcher
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import note_signals

COMMANDS = [
    pretrain.COMMAND,
    finetune.COMMAND,
    train_tokenizer.COMMAND,
    eval.COMMAND,
    predict.COMMAND,
    embed.COMMAND,
    tokenize.COMMAND,
    mask_preview.COMMAND,
    attn_map.COMMAND,
    doctor.COMMAND,
    pack.COMMAND,
    inspect.COMMAND,
    export.COMMAND,
    recipes.COMMAND,
    runs.COMMAND,
    report.COMMAND,
    env.COMMAND,
    cache.COMMAND,
]

_INTRO = """BEiT: BERT pre-training of image Transformers, from the command line.

\b
Examples:
  $ beit pretrain sample --recipe tiny            the whole job in minutes, without any data
  $ beit pretrain photos/ --recipe small          on images of your own
  $ beit finetune labelled/ --init runs/RUN       a classifier from what it learned
  $ beit attn-map photo.jpg --model runs/RUN -o attention.png
  $ beit help --man | man -l -                    all commands and options as a manual page"""


def _version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"beit {__version__}\n")
        raise typer.Exit


def _build(words: list[str], requested: set[str], own_options: bool) -> typer.Typer:
    """Builds the typer app.

    Args:
        words: The command line, without the program's name.
        requested: Names of the commands that get their parameters; building the parameters of all commands takes 40 ms.
        own_options: Whether to add typer's options of the program itself, for which typer imports pydantic (80 ms).
    """
    app = typer.Typer(
        name="beit",
        help=_INTRO,
        no_args_is_help=True,
        add_completion=own_options,
        add_help_option=own_options,
        rich_markup_mode="rich",
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
        if command.name in requested:
            register(app, command, {name for each in COMMANDS for name in settings_of(each.config)}, words)
        else:
            app.command(command.name, short_help=command.summary, rich_help_panel=command.panel)(_nothing)
    return app


def _nothing() -> None:
    """Placeholder callback of a command that the command line does not name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code, as listed in `beitcli.errors`."""
    arguments = _help_as_option(list(sys.argv[1:] if argv is None else argv))
    open_closed_streams()
    console = CommandConsole(debug="--debug" in arguments)
    try:
        code = _run(arguments, console)
        sys.stdout.flush()
        return code
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


def _run(arguments: list[str], console: CommandConsole) -> int:
    if arguments == ["--man", "--help"]:  # `beit help --man`
        from beitcli.cli.man_page import man_page

        write_stdout(man_page(COMMANDS))
        return 0
    names = {command.name for command in COMMANDS}
    completing = COMPLETING in os.environ
    word = next((word for word in arguments if not word.startswith("-")), "")
    requested = names if completing else names & {word}
    own_options = completing or arguments[:1] != [word] or not requested
    command = typer.main.get_command(_build(arguments, requested, own_options))
    asked_for_all = ALL in arguments and "--" not in arguments[: arguments.index(ALL)]
    arguments = ["--help" if asked_for_all and each == ALL else each for each in arguments]
    try:
        code = command.main(args=arguments, prog_name="beit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        console.print_error(_usage_error(error, arguments))
        return 2


def _help_as_option(arguments: list[str]) -> list[str]:
    """`beit help` and `beit help COMMAND` are `beit --help` and `beit COMMAND --help`; `beit help --man` is roff."""
    return [*arguments[1:2], "--help"] if arguments[:1] == ["help"] else arguments


def _usage_error(error: typer.TyperException, arguments: list[str]) -> UsageError:
    """Converts typer's error to a `UsageError`, with the nearest spelling as hint."""
    name = next((word for word in arguments if not word.startswith("-")), "")
    commands = {command.name: command for command in COMMANDS}
    help_line = f"See `beit {name} --help`." if name in commands else "See `beit --help`."
    message = error.format_message().splitlines()[0] if error.format_message() else "No command is given."
    if hasattr(error, "option_name") and "requires an argument" in message:
        return UsageError(f"{error.option_name} needs a value.", help_line)
    if hasattr(error, "option_name") and "not take a value" in message:
        return UsageError(f"{error.option_name} takes no value.", f"Write {error.option_name}. {help_line}")
    if hasattr(error, "option_name"):
        option: str = error.option_name
        message = f"There is no option {option}" + (f" of `beit {name}`." if name in commands else ".")
        settings = settings_of(commands[name].config).values() if name in commands else ()
        flags = [part for s in settings for flag in s.option.flags or (s.flag,) for part in flag.split("/")]
        hint = suggestion(option, [*flags, "--json", "--quiet", "--debug", "--help", ALL])
        return UsageError(message, f"{hint} {help_line}".strip())
    if message.startswith("No such command") and name:
        hint = suggestion(name, commands)
        return UsageError(f"There is no command '{name}'.", f"{hint} {help_line}".strip())
    return UsageError(message, help_line)


def run() -> None:
    """Entry point of console scripts that an earlier version installed; `beitcli.__main__` hears signals sooner."""
    note_signals()
    end_with_launcher()
    sys.exit(main())
