r"""The manual page, as roff from the same declarations as the help: `beit help --man | man -l -`.

.TH title   .SH section   .SS a command   .TP an option and its help   .nf .fi lines as they are
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from beitcli import __version__
from beitcli.cli.command_table import Command
from beitcli.config.fields import Setting, settings_of

EXIT_CODES = (
    ("0", "done"),
    ("1", "unexpected failure (a bug)"),
    ("2", "usage or configuration"),
    ("3", "data: missing, unreadable, or more bad images than allowed"),
    ("4", "checkpoint, weights or storage"),
    ("5", "training diverged (non-finite)"),
    ("6", "distributed failure"),
    ("75", "stopped by a signal after saving: run again to go on"),
    ("130", "Ctrl-C"),
)
ENVIRONMENT = (
    ("BEIT_NAME", "The setting NAME of any command, where no option gives it: BEIT_BATCH_SIZE=32."),
    ("BEIT_CACHE_DIR", "Folder for downloads, features and lists of files; default ~/.cache/beit."),
    ("BEIT_STREAM_CACHE_GB", "Gigabytes of data from the hub that are kept; default 50."),
    (
        "BEIT_TERMINAL_IMAGES",
        "How --preview draws: kitty, iterm, sixel or blocks; default what the terminal is known to show.",
    ),
    ("NO_COLOR", "No colours."),
)


def man_page(commands: Sequence[Command]) -> str:
    """Returns the manual page of the program."""
    return "\n".join(_lines(commands)) + "\n"


def _lines(commands: Sequence[Command]) -> Iterator[str]:
    yield f'.TH BEIT 1 "" "beit {__version__}" "User Commands"'
    yield from (".SH NAME", _text("beit - BERT pre-training of image Transformers, from the command line"))
    yield from (".SH SYNOPSIS", ".B beit", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]")
    yield ".SH COMMANDS"
    for command in commands:
        yield from _command(command)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", _text(code), _text(meaning))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT:
        yield from (".TP", f".B {_text(name)}", _text(meaning))


def _command(command: Command) -> Iterator[str]:
    settings = [each for each in settings_of(command.config).values() if not each.option.hidden]
    arguments = [each for each in settings if each.option.argument]
    named = " ".join(f"\\fI{_text(each.option.metavar or each.name.upper())}\\fR" for each in arguments)
    yield from (f".SS {_text('beit ' + command.name)}", f"\\fBbeit {_text(command.name)}\\fR {named}".rstrip(), ".PP")
    yield _text(f"{command.summary} {command.about}".strip())
    yield from (".PP", ".nf", *(_text(f"  $ {line}") for line in command.examples), ".fi")
    for setting in (*arguments, *(each for each in settings if not each.option.argument)):
        yield from (".TP", _label(setting), _text(setting.help))
    yield from (".TP", r"\fB\-\-json\fR", _text(command.declaration.json_help))
    yield from (".TP", r"\fB\-q\fR, \fB\-\-quiet\fR", "Print results and errors only.")
    yield from (".TP", r"\fB\-\-debug\fR", "Print full tracebacks.")


def _label(setting: Setting) -> str:
    if setting.option.argument:
        return f"\\fI{_text(setting.option.metavar or setting.name.upper())}\\fR"
    flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in setting.option.flags or (setting.flag,))
    value = setting.option.metavar or "|".join(setting.choices) or ("" if setting.kind is bool else "VALUE")
    return f"{flags} \\fI{_text(value)}\\fR" if value else flags


def _text(text: str) -> str:
    """Escapes text: a backslash, dashes that stay dashes, and a first letter that would begin a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
