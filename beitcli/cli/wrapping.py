"""Lines for a terminal, broken between words (stdlib only); what one would copy stays whole.

Whole are paths and words, quoted names, and commands: in backticks, behind a colon to the end of the line (without a
comma or semicolon in it), or within a sentence. A terminal wraps what is longer than itself, and copies it as one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import east_asian_width

_PREFIX = re.compile(r"(?:error|stopped|warning): ")
_PROGRAMS = "beit|python3?|pip|hf|sudo|apt|apt-get|ulimit|find|torchrun"
_ARGUMENT = r"--?[a-z][\w-]*(?: (?!-)[^\s,;]+)?|[A-Z]+\b|[^\s,;]*/[^\s,;]*"  # an option with its value, a path, DATA
_WHOLE = re.compile(
    rf"`[^`]*`|(?<!\w)'[^']*'(?!\w)"
    rf"|(?<=: )(?:{_PROGRAMS}) [^,;`]*$|^ *(?:{_PROGRAMS}) .*$|\bbeit [a-z]+(?:-[a-z]+)*(?: (?:{_ARGUMENT}))*"
)
_KEPT = "\0"  # a space at which no line ends; no control character reaches a terminal


def wrapped(text: str, width: int) -> str:
    """Returns text with each line wrapped at spaces; further lines are indented below the first.

    Args:
        width: Columns of the terminal.
    """
    return "\n".join(part for line in text.split("\n") for part in _parts(line, width))


def _parts(line: str, width: int) -> list[str]:
    if columns(line) <= width:
        return [line]
    start = _PREFIX.match(line)
    indent = " " * (len(start[0]) if start else len(line) - len(line.lstrip(" ")) + 2)
    first, *words = _WHOLE.sub(lambda found: found[0].lstrip(" ").replace(" ", _KEPT), line.lstrip(" ")).split(" ")
    parts = [" " * (len(line) - len(line.lstrip(" "))) + first]
    for word in words:
        if columns(parts[-1]) + 1 + columns(word) <= width:
            parts[-1] += f" {word}"
        else:
            parts.append(indent + word)
    return [part.replace(_KEPT, " ") for part in parts]


def arranged(name: str, parts: Sequence[str], width: int) -> list[list[str]]:
    """Arranges a name and what is said of it: in one line if that fits, else the parts after the first below it.

    Args:
        parts: None is broken that fits a line of its own.
        width: Columns of the terminal.

    Returns:
        The texts of each line, to be joined by two spaces; lines after the first are to be indented by four.
    """
    if columns("  ".join([name, *parts])) <= width:
        return [[name, *parts]]
    beside = 1 if parts and columns(f"{name}  {parts[0]}") <= width else 0
    rows, room = [[name, *parts[:beside]]], width - 4
    for part in parts[beside:]:
        if len(rows) > 1 and columns("  ".join([*rows[-1], part])) <= room:
            rows[-1].append(part)
        else:
            rows += [[text] for text in wrapped(part, room).split("\n")]
    return rows


def columns(text: str) -> int:
    """Returns the columns that a terminal shows text in: two for a wide character."""
    return len(text) if text.isascii() else sum(1 + (east_asian_width(each) in "WF") for each in text)
