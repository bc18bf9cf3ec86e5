"""The help of one command: examples, arguments, and its options by panel, at any width without breaking a word.

An option's help stands beside it where the terminal is wide enough, else below it.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.text import Text

_FEWEST_COLUMNS = 40
_LABEL_SHARE = 0.34  # of the width, for flags with their values
_LAST = ("Machine", "Output")  # panels, after those of the command's own
_KEPT = "\xa0"  # a space at which no line ends
_DEFAULT = re.compile(r"\[default: [^\]]*\]")
_REMARK = "     "  # before what an example says of itself


class HelpCommand(TyperCommand):
    """A command whose `--help` is `help_page`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console

        console = Console(highlight=False, emoji=False)
        for part in help_page(self, ctx, max(_FEWEST_COLUMNS, console.width)):
            console.print(part)


def help_page(command: TyperCommand, ctx: Any, width: int) -> list[Any]:
    """Returns the parts of a command's help, to be printed one below the other."""
    from rich.panel import Panel
    from rich.text import Text

    usage = Text("\n " + command.get_usage(ctx), style="bold")
    parts: list[Any] = [usage, Text("\n" + _paragraphs(command.help or "", width - 2) + "\n")]
    panels: dict[str, list[Any]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            default = "Options" if param.param_type_name == "option" else "Arguments"
            panels.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(param)
    for name in sorted(panels, key=lambda name: _LAST.index(name) if name in _LAST else -1):
        if params := panels[name]:
            rows = [_row(param, width - 4) for param in params]
            body = Text("\n").join(rows)
            parts.append(Panel(body, title=name, title_align="left", border_style="dim", width=width))
    if command.epilog:
        parts.append(Text(" " + command.epilog + "\n", style="dim"))
    return parts


def _paragraphs(text: str, width: int) -> str:
    """Wraps help: paragraphs at words, those that begin with a backspace sign line by line, as command lines."""
    shown = []
    for paragraph in text.replace("\\[", "[").split("\n\n"):
        if paragraph.startswith("\b"):
            lines = [part for line in paragraph.splitlines()[1:] for part in _example(line, width)]
        else:
            lines = _wrapped(" ".join(paragraph.split()), width)
        shown.append("\n".join(f" {line}".rstrip() for line in lines))
    return "\n\n".join(shown)


def _example(line: str, width: int) -> list[str]:
    """Wraps a command line so that it can be pasted: with a backslash; a remark that does not fit gets its own line."""
    if len(line) <= width:
        return [line]
    command, _, remark = line.partition(_REMARK)
    lines = _wrapped(command, width - 2, after="      ")
    lines = [f"{each} \\" for each in lines[:-1]] + lines[-1:]
    return lines + _wrapped(f"    # {remark.strip()}", width, after="    # ") if remark else lines


def _wrapped(text: str, width: int, after: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=after, break_long_words=False, break_on_hyphens=False)


def _row(param: Any, width: int) -> Text:
    """Returns an option or argument with its help, on lines of at most `width` characters."""
    from rich.text import Text

    flags, value = _label(param)
    label = Text(flags, style="bold cyan")
    if value:
        label.append(f" {value}" if flags else value, style="yellow")
    help = _DEFAULT.sub(lambda found: found[0].replace(" ", _KEPT), (param.help or "").replace("\\[", "["))
    column = int(width * _LABEL_SHARE)
    if len(label) > width:
        label = Text("\n").join([Text(flags, style="bold cyan"), *_values(value, width)])
    lines = [line.replace(_KEPT, " ") for line in _wrapped(help, width - column)]
    if lines and len(label) <= column - 2 and "\n" not in label.plain:
        label.append(" " * (column - len(label)) + lines.pop(0))
    for line in lines:
        label.append(f"\n{' ' * column}{line}")
    return label


def _label(param: Any) -> tuple[str, str]:
    """Returns flags, and what stands for the value."""
    if param.param_type_name != "option":
        name = param.metavar or (param.name or "").upper()
        return "", f"{name}..." if param.nargs == -1 else name
    short_first = sorted(param.opts, key=lambda flag: flag.startswith("--"))
    flags = ", ".join(short_first) + "".join(f"/{flag}" for flag in param.secondary_opts)
    return flags, "" if param.is_flag else param.metavar or "<text>"


def _values(value: str, width: int) -> list[Text]:
    """Splits the choices of an option that do not fit into a line, between two of them."""
    from rich.text import Text

    lines = _wrapped(value.replace("|", "| "), width - 4)
    return [Text(f"    {line.replace('| ', '|')}", style="yellow") for line in lines]
