"""Help, of the program and of one command, at any width without breaking a word.

Usage and examples stand first, then arguments and options by panel. An option's help stands beside it where the
terminal is wide enough, else below it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from beitcli.cli.command_table import BY_NAME, COMMANDS, HELP
from beitcli.cli.terminal_style import Style, style_of

_FEWEST_COLUMNS = 40
_LABEL_SHARE = 0.34  # of the width, for flags with their values
_COMMAND_SHARE = 0.25  # for the names of commands
_LAST = ("Machine", "Output")  # panels, after those of the command's own
_KEPT = "\xa0"  # a space at which no line ends
_DEFAULT = re.compile(r"\[default: [^\]]*\]")
_WITH_VALUE = re.compile(r"(?<= )(--?[a-z][a-z-]*) (?=[^-\s|])")  # an option, before its value
_REMARK = "     "  # before what an example says of itself
_INTRO = """BEiT: BERT pre-training of image Transformers, from the command line.

\b
Examples:
  $ beit pretrain sample --recipe tiny     in minutes, without any data
  $ beit pretrain photos/ --recipe small     on images of your own
  $ beit finetune labelled/ --recipe small --init runs/RUN     a classifier
  $ beit attn-map photo.jpg --model runs/RUN -o attention.png
  $ beit help --man | man -l -     all of it as a manual page"""


class Row(NamedTuple):
    """One option, argument or command of a page.

    Attributes:
        name: Flags, or a command's name; empty for an argument.
        value: What stands for the value; empty for a switch.
    """

    name: str
    value: str
    help: str


OWN_OPTIONS = (
    Row("-V, --version", "", "Show the version."),
    Row("--install-completion", "", "Install completion for the current shell."),
    Row("--show-completion", "", "Show completion for the current shell, to copy it or customize the installation."),
    Row("-h, --help", "", "Show this message and exit."),
)


def program_help() -> str:
    """Returns the help of the program, for stdout."""
    panels: dict[str, list[Row]] = {}
    for panel, commands in groupby(COMMANDS, lambda command: command.panel):
        panels[panel] = [Row(command.name, "", command.summary) for command in commands]
    name, panel, summary = HELP
    panels[panel].append(Row(name, "", summary))
    panels["Options"] = list(OWN_OPTIONS)
    return _page("Usage: beit [OPTIONS] COMMAND [ARGS]...", _INTRO, panels)


def command_help(command: Any, ctx: Any) -> str:
    """Returns the help of one command, for stdout.

    Args:
        command: Typer's.
    """
    panels: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            default = "Options" if param.param_type_name == "option" else "Arguments"
            panel = getattr(param, "rich_help_panel", None) or default
            panels.setdefault(panel, []).append(Row(*_label(param), param.help or ""))
    in_order = sorted(panels, key=lambda name: _LAST.index(name) if name in _LAST else -1)
    return _page(
        _usage(command, ctx), command.help or "", {name: panels[name] for name in in_order}, command.epilog or ""
    )


def _usage(command: Any, ctx: Any) -> str:
    """Returns the line of usage, in which brackets stand around what may be left out."""
    from beitcli.config.fields import settings_of  # which the help of the program does without

    usage: str = command.get_usage(ctx)
    for setting in settings_of(BY_NAME[command.name].config).values() if command.name in BY_NAME else ():
        if setting.option.argument and setting.option.required:
            word = setting.option.metavar or setting.name.upper()
            usage = usage.replace(f"[{word}]", word)
    return usage


def _page(usage: str, intro: str, panels: Mapping[str, list[Row]], after: str = "") -> str:
    style = style_of(sys.stdout)
    style = style._replace(width=max(_FEWEST_COLUMNS, style.width))
    lines = ["", style.styled(f" {usage}", "bold"), "", *_paragraphs(intro, style.width - 2), ""]
    for name, rows in panels.items():
        if rows:
            share = _LABEL_SHARE if any(row.value or row.name.startswith("-") for row in rows) else _COMMAND_SHARE
            lines += style.boxed(name, [line for row in rows for line in _lines_of(row, style, share)])
    if after:
        lines += [style.styled(f" {after}", "dim"), ""]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str, width: int) -> Iterable[str]:
    """Wraps help: paragraphs at words, those that begin with a backspace sign line by line, as command lines."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ""
        if paragraph.startswith("\b"):
            lines = [part for line in paragraph.splitlines()[1:] for part in _example(line, width)]
        else:
            lines = _wrapped(" ".join(paragraph.split()), width)
        yield from (f" {line}".rstrip() for line in lines)


def _example(line: str, width: int) -> list[str]:
    """Wraps a command line so that it can be pasted: with a backslash; a remark that does not fit gets its own line."""
    if len(line) <= width:
        return [line]
    command, _, remark = line.partition(_REMARK)
    lines = _wrapped(_WITH_VALUE.sub(rf"\1{_KEPT}", command), width - 2, after="      ")
    lines = [f"{each} \\" for each in lines[:-1]] + lines[-1:]
    lines = [line.replace(_KEPT, " ") for line in lines]
    return lines + _wrapped(f"    # {remark.strip()}", width, after="    # ") if remark else lines


def _wrapped(text: str, width: int, after: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)


def _lines_of(row: Row, style: Style, share: float) -> Iterable[tuple[str, str]]:
    """Yields the lines of a row, of at most `style.width - 4` characters, as they are and with styles."""
    width = style.width - 4
    column = int(width * share)
    help = _help_lines(row.help, width - column)
    name, value = style.styled(row.name, "bold cyan"), style.styled(row.value, "yellow")
    label = f"{row.name} {row.value}".strip()
    if len(label) <= column - 2 and help:
        gap = " " * (column - len(label))
        yield label + gap + help[0], f"{name} {value}".strip() + gap + help[0]
        help = help[1:]
    elif len(label) <= width:
        yield label, f"{name} {value}".strip()
    else:
        flag, slash, negation = row.name.partition("/") if len(row.name) > width else (row.name, "", "")
        for line in (f"{flag}{slash}", *([f"    {negation}"] if negation else ())):
            yield line, style.styled(line, "bold cyan")
        for line in _values(row.value, width):
            yield line, style.styled(line, "yellow")
    for line in help:
        yield " " * column + line, " " * column + line


def _help_lines(text: str, width: int) -> list[str]:
    """Wraps the help of a row; a default that fits into a line stands on one."""
    kept = _DEFAULT.sub(lambda found: found[0].replace(" ", _KEPT) if len(found[0]) <= width else found[0], text)
    return [line.replace(_KEPT, " ") for line in _wrapped(kept, width)]


def _label(param: Any) -> tuple[str, str]:
    """Returns flags, and what stands for the value."""
    if param.param_type_name != "option":
        name = param.metavar or (param.name or "").upper()
        return "", f"{name}..." if param.nargs == -1 else name
    short_first = sorted(param.opts, key=lambda flag: flag.startswith("--"))
    flags = ", ".join(short_first) + "".join(f"/{flag}" for flag in param.secondary_opts)
    return flags, "" if param.is_flag else param.metavar or "<text>"


def _values(value: str, width: int) -> list[str]:
    """Splits the choices of an option that do not fit into a line, between two of them."""
    lines = _wrapped(value.replace("|", "| "), width - 4)
    return [f"    {line.replace('| ', '|')}" for line in lines]
