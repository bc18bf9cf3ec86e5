"""Styled text, and what a stream can show of it, without rich, whose import takes longer than all else of a help.

Which streams are terminals, and how wide, is told as rich tells it: `cli/console.py` draws tables and bars with rich.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

_CODES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33", "cyan": "36"}
_COLOURS = ("red", "yellow", "cyan")
_ROUNDED, _ASCII = tuple("╭─╮│╰╯"), tuple("+-+|++")


class Style(NamedTuple):
    """What a stream can show.

    Attributes:
        width: Columns.
        has_styles: Whether it takes escape codes: it is a terminal, and no dumb one.
        has_colours: Whether those may be colours.
        has_boxes: Whether its encoding has lines of boxes.
    """

    width: int
    has_styles: bool
    has_colours: bool
    has_boxes: bool

    def styled(self, text: str, style: str) -> str:
        """Returns text with escape codes for a style such as `bold red`, or of it what the stream can show."""
        words = [word for word in style.split() if self.has_colours or word not in _COLOURS]
        if not (self.has_styles and words and text):
            return text
        return f"\x1b[{';'.join(_CODES[word] for word in words)}m{text}\x1b[0m"

    def boxed(self, title: str, rows: list[tuple[str, str]]) -> list[str]:
        """Returns the lines of a box as wide as the stream.

        Args:
            rows: Each line as it is, and with its styles; at most `width - 4` characters.
        """
        left, line, right, side, lower_left, lower_right = _ROUNDED if self.has_boxes else _ASCII
        edge = self.styled(side, "dim")
        above = f"{left}{line} {title} ".ljust(self.width - 1, line) + right
        below = f"{lower_left}{line * (self.width - 2)}{lower_right}"
        inside = [f"{edge} {styled}{' ' * (self.width - 4 - len(plain))} {edge}" for plain, styled in rows]
        return [self.styled(above, "dim"), *inside, self.styled(below, "dim")]


def style_of(stream: Any) -> Style:
    """Returns what a text stream can show."""
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    has_styles = is_terminal(stream) and not is_dumb
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return Style(
        80 if is_dumb and is_terminal(stream) else _width(),
        has_styles,
        has_styles and not os.environ.get("NO_COLOR"),
        encoding.lower().startswith("utf"),
    )


def is_terminal(stream: Any) -> bool:
    """Whether a text stream is a terminal, or the environment says so."""
    compatible, forced = os.environ.get("TTY_COMPATIBLE", ""), os.environ.get("FORCE_COLOR")
    if compatible in ("0", "1"):
        return compatible == "1"
    if forced is not None:
        return forced != ""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no file, or a closed one
        return False


def terminal_height() -> int | None:
    """Returns the lines of the terminal behind stderr; None if it does not tell."""
    try:
        return os.get_terminal_size(2).lines or None
    except (OSError, ValueError):
        return None


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    for descriptor in range(3):  # a page that goes through a pager is as wide as the terminal behind it
        try:
            return os.get_terminal_size(descriptor).columns or 80
        except (OSError, ValueError):
            continue
    return 80
