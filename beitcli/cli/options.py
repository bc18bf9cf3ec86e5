"""Builds commands from config classes: every setting becomes an option, so flag, environment, TOML and help agree."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import typer

from beitcli.cli import multi_process as processes
from beitcli.cli.command_table import ALL, COMPLETING, Command, Declaration
from beitcli.cli.common_options import is_common, place_in_help
from beitcli.cli.console import CommandConsole
from beitcli.cli.new_folders import tell_new_folders
from beitcli.cli.path_checks import check_command, hold_resumed
from beitcli.cli.signal_exit import ImmediateStop, immediate_stop_on_signal
from beitcli.cli.streams import close_stdout, with_way_out
from beitcli.cli.typer_commands import CommandWithPage
from beitcli.config.fields import Setting, Size, settings_of
from beitcli.config.recipe_files import recipe_names
from beitcli.config.resolve import EXCLUSIVE, Resolved, default_recipe, recipe_settings, resolve
from beitcli.config.resuming import resuming_words
from beitcli.errors import BeitError, Interrupted, ReaderGone, SignalStop
from beitcli.escaping import shell_line
from beitcli.runtime.distributed.rank_env import RankInfo
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import forget, noted, signal_words


def register(app: typer.Typer, command: Command, known_settings: Callable[[], set[str]], words: list[str]) -> None:
    """Adds a command whose parameters are its config's settings.

    Args:
        known_settings: Returns the names of the settings of all commands.
        words: The command line, for the processes that the command may launch.
    """
    declared = command.declaration
    settings = settings_of(declared.config)
    resolved_of = partial(resolve, declared.config, environ=os.environ, known_elsewhere=known_settings)

    def callback(**given: Any) -> None:
        del given["help_all"]  # `main` has made it --help
        console = CommandConsole(as_json=given.pop("as_json"), quiet=given.pop("quiet"), debug=given.pop("debug"))
        flags = {name: value for name, value in given.items() if value not in (None, [])}
        place = None
        try:
            place = processes.place_of(declared.config)
            with immediate_stop_on_signal():
                if place is not None:
                    console.muted = place.rank > 0
                resolved: Resolved[Any] = resolved_of(flags)
                console.origins = resolved.origins
                if place is not None and place.restarts and processes.goes_on(resolved.config):
                    resolved = resolved_of(flags | {"resume": True})
                if resolved.notes:
                    from beitcli.engine.events import Warned

                    for said in resolved.notes:  # `muted` on other ranks than 0
                        console.on_event(Warned(said))
                if place is None:
                    check_command(resolved.config, console.on_event)
                    tell_new_folders(resolved.config, console.on_event)
                elif place.restarts:
                    processes.tell_restart(place, resolved.config, console)
                if not processes.run_multi_process(resolved.config, words, console):
                    console.say_starting()
                    _held = hold_resumed(resolved.config) if place is None else None  # until the command ends
                    declared.run(resolved.config, console)
                processes.shutdown()
        except ReaderGone as gone:
            close_stdout()
            if place is not None:
                processes.reader_has_gone(place, gone)
        except (KeyboardInterrupt, ImmediateStop, Exception) as error:
            error = _stop_or(error, partial(_resume_hint, declared.config, flags))
            raise typer.Exit(_ended(place, error, console)) from None
        finally:
            console.close()

    given_options = _given_options(settings, words)
    recipe = _recipe(command, settings, given_options)
    of_recipe = recipe_settings(declared.config, settings, recipe, given_options) if recipe else {}
    task = _task(settings, of_recipe | given_options)
    shows_help = not _HELP.isdisjoint(words)  # otherwise all are visible: for completion and errors
    hides = task is not None and shows_help
    fewer = [
        each for each in settings.values() if shows_help and ALL not in words and not is_common(command.name, each)
    ]
    fewer = [each for each in fewer if not each.option.hidden and (not hides or each.belongs_to(task))]

    def is_hidden(setting: Setting) -> bool:
        return setting.option.hidden or setting in fewer or (hides and not setting.belongs_to(task))

    parameters = _parameters(command.name, settings.values(), of_recipe, recipe, is_hidden)
    callback.__signature__ = inspect.Signature([*parameters, *_shell_options(declared)])  # type: ignore[attr-defined]
    callback.__annotations__ = {}
    text = _help(command) + (_other_tasks(command, settings["task"], task) if task is not None else "")
    app.command(
        command.name,
        cls=CommandWithPage,
        help=text,
        short_help=command.summary,
        epilog=f"{len(fewer)} more options: beit {command.name} {ALL}" if fewer else None,
    )(callback)


def _help(command: Command) -> str:
    examples = "\n".join(f"  $ {line}" for line in command.examples)
    text = f"{command.summary}\n\n\b\nExamples:\n{examples}"
    recipes = recipe_names(command.name)
    about = f"{command.about} Recipes: {', '.join(recipes)}.".strip() if recipes else command.about
    return f"{text}\n\n{about}" if about else text


def _given_options(settings: dict[str, Setting], words: list[str]) -> dict[str, str]:
    """Finds the options that the help depends on: typer prints the help before it parses the rest."""
    found = {}
    for name in {"recipe", "task", "init"} & settings.keys():
        flag = settings[name].flag
        for word, after in pairwise([*words, ""]):
            if word == flag or word.startswith(f"{flag}="):
                found[name] = after if word == flag else word.removeprefix(f"{flag}=")
    return found


def _recipe(command: Command, settings: dict[str, Setting], given_options: dict[str, str]) -> str:
    """Returns the recipe whose values the help shows; empty for a command without recipes."""
    if "recipe" not in settings:
        return ""
    named = given_options.get("recipe")
    return named if named in recipe_names(command.name) else default_recipe(command.config, settings, given_options)


def _task(settings: dict[str, Setting], values: dict[str, Any]) -> str | None:
    """Returns the task whose settings the help shows; None for a command with a single task."""
    if not any(setting.option.tasks for setting in settings.values()):
        return None
    task = settings["task"]
    return values["task"] if values.get("task") in task.choices else task.default


def _other_tasks(command: Command, setting: Setting, task: str) -> str:
    """Returns the help paragraph that refers to the other tasks."""
    others = " or ".join(f"{setting.flag} {each} --help" for each in setting.choices if each != task)
    return f"\n\nBelow are the settings of {setting.flag} {task}; of others: beit {command.name} {others}."


def _stop_or(error: BaseException, hint: Callable[[], str]) -> Exception:
    """Returns the stop that a signal asked for, also where the code that it struck raised another error.

    Else returns what the machine lacks, or `error` itself.

    Args:
        hint: Returns that of the stop.
    """
    number = noted()
    forget()
    if isinstance(error, KeyboardInterrupt) or number == signal.SIGINT:
        return Interrupted(f"by {signal_words(signal.SIGINT)}, at once.", hint())
    if isinstance(error, ImmediateStop) or number is not None:
        return SignalStop(f"by {signal_words(number)}, at once.", hint())
    assert isinstance(error, Exception)
    return shortage(error) or error


def _ended(place: RankInfo | None, error: Exception, console: CommandConsole) -> int:
    """Prints an error and returns the exit code."""
    error = with_way_out(error)
    if place is not None:
        return processes.ended(place, error, console)
    console.print_error(error)
    return error.exit_code if isinstance(error, BeitError) else 1


def _resume_hint(config_class: type, flags: dict[str, Any]) -> str:
    """Returns the hint on how to resume a run that was stopped at once and could not print it."""
    folder = flags.get("out")
    if not folder or not os.path.isfile(os.path.join(folder, "config.toml")):
        return "" if folder is None else "Nothing was begun yet: give the same command again."
    return f"Go on from the last checkpoint with: {shell_line(resuming_words(config_class, folder, flags))}"


def _default(setting: Setting, of_recipe: dict[str, Any], recipe: str) -> str:
    """Returns `[default: ...]` for the help: the recipe's value if it has one, else the setting's; or `[required]`."""
    if of_recipe.get(setting.name) is not None:
        value, source = of_recipe[setting.name], f", recipe {recipe}"
    elif setting.option.required and not setting.option.argument and setting.default in (None, "", ()):
        return "[required]"
    else:
        excluded = any(setting.name in pair and not of_recipe.keys().isdisjoint(pair) for pair in EXCLUSIVE)
        value, source = None if excluded else setting.default, ""
        if value in (None, "", (), False, -1):
            return ""
    if isinstance(value, bool) or value == "":
        return ""
    plain = f"{value:g}" if isinstance(value, float) else setting.plain(value)
    shown = ", ".join(map(str, plain)) if isinstance(plain, tuple) else plain
    return f"[default: {shown}{source}]"


def _parameters(
    command: str,
    settings: Iterable[Setting],
    of_recipe: dict[str, Any],
    recipe: str,
    is_hidden: Callable[[Setting], bool],
) -> list[inspect.Parameter]:
    """Returns the arguments of a command, then its options as they stand in its help."""
    arguments_first = sorted(settings, key=lambda each: (not each.option.argument, place_in_help(command, each)))
    return [
        _parameter(command, each, _default(each, {}, ""))
        if each.option.argument
        else _parameter(command, each, _default(each, of_recipe, recipe), hidden=is_hidden(each))
        for each in arguments_first
    ]


def _parameter(command: str, setting: Setting, default: str, *, hidden: bool = False) -> inspect.Parameter:
    how, kind = setting.option, setting.kind
    inner = bool if kind is bool else str  # `resolve` parses the value, with the same errors as for a file
    annotation: Any = list[inner] | None if setting.many else inner | None  # type: ignore[valid-type]
    text = f"{setting.help} {default}".rstrip()
    choices = "|".join(setting.choices) + (",..." if setting.choices and setting.many else "")
    metavar = how.metavar or choices or _METAVARS.get(kind)
    complete = None
    if COMPLETING in os.environ:
        from beitcli.cli.completion import completer

        complete = completer(command, setting)
        text = text.replace("[", "\\[")  # typer takes it for markup there
    if how.argument:
        info: Any = typer.Argument(
            help=text, metavar=how.metavar or choices or None, show_default=False, autocompletion=complete
        )
    else:
        flags = how.flags or (f"--{setting.name.replace('_', '-')}",)
        info = typer.Option(
            *flags,
            help=text,
            metavar=metavar,
            show_default=False,
            hidden=hidden,
            rich_help_panel=how.panel,
            autocompletion=complete,
        )
    return _keyword(setting.name, annotation, info, None)


def _keyword(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


_HELP = {"-h", "--help", ALL}
_METAVARS: dict[Any, str] = {int: "<int>", float: "<float>", Size: "PX|H,W"}


def _shell_options(declared: Declaration) -> list[inspect.Parameter]:
    json = typer.Option("--json", help=declared.json_help, rich_help_panel="Output")
    return [
        _keyword("help_all", bool, typer.Option(ALL, help="Show every option and exit."), False),
        _keyword("as_json", bool, json, False),
        _keyword(
            "quiet",
            bool,
            typer.Option("-q", "--quiet", help="Print results and errors only.", rich_help_panel="Output"),
            False,
        ),
        _keyword(
            "debug", bool, typer.Option("--debug", help="Print full tracebacks.", rich_help_panel="Output"), False
        ),
    ]
