"""Says on a terminal that a command is starting, if it has printed nothing for most of a second, as torch is imported.

The word stands on a line of its own and is erased before anything else is written to stderr or stdout.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from threading import Lock, Timer

from beitcli.cli import streams
from beitcli.cli.terminal_style import style_of

_AFTER_SECONDS = 0.7
_ERASE = "\r\x1b[K"


class StartNotice:
    """The notice of one command; `withdraw` erases it, or sees to it that it is not shown."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_due, self._is_shown = True, False
        self._timer = Timer(_AFTER_SECONDS, self._show)
        self._timer.daemon = True

    def begin(self) -> None:
        """Shows it later, on a terminal that can erase it."""
        if style_of(sys.stderr).has_styles:
            streams.before_output = self.withdraw
            self._timer.start()

    def withdraw(self) -> None:
        streams.before_output = None
        with self._lock:
            self._is_due = False
            if self._is_shown:
                self._is_shown = False
                _write(_ERASE)
        self._timer.cancel()

    def _show(self) -> None:
        with self._lock:
            if self._is_due:
                self._is_shown = True
                _write(style_of(sys.stderr).styled("starting ...", "dim") + "\r")  # others write over it


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # the terminal is gone
        sys.stderr.write(text)
        sys.stderr.flush()
