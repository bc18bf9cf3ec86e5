"""Immediate exit on SIGTERM, SIGUSR1 and SIGHUP outside a training loop, with cleanup and a message.

A scheduler may end a job while it imports libraries, opens data or writes tokens. Without a handler the process would
leave temporary files behind, and its exit code would not tell the scheduler that it can be restarted.

While a module is imported the stop waits, 2 s at most for torch: libraries run Python from C++ there, where an error
ends the process with SIGABRT. A second Ctrl-C does not wait.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from beitcli.runtime.signals import note, noted, stop_signals

_RETRY_SECONDS = 0.05
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_HAS_TIMER = hasattr(signal, "setitimer")  # not on Windows


class ImmediateStop(BaseException):
    """Raised in the main thread at any point, like KeyboardInterrupt."""


@contextmanager
def immediate_stop_on_signal() -> Iterator[None]:
    """Turns the signals into ImmediateStop, and those noted before; training loops replace these handlers meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop(imports_before=_imports(sys._getframe()))
    numbers = [*stop_signals()]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    handlers: dict[int, Callable[[int, FrameType | None], None]] = dict.fromkeys(numbers, stop.now)
    if _HAS_TIMER:
        handlers[signal.SIGALRM] = stop.later
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        if (number := noted()) is not None:
            raise _error(number)
        yield
    finally:
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Stop:
    """Signal handlers that raise, but not amid an import.

    Attributes:
        imports_before: Imports in progress around the command, which do not count.
    """

    imports_before: int

    def now(self, number: int, frame: FrameType | None) -> None:
        insists = number == signal.SIGINT == noted()
        note(number)  # the error may be swallowed where it strikes
        if insists or not self._waits(frame):
            raise _error(number)

    def later(self, number: int, frame: FrameType | None) -> None:
        asked = noted()
        if asked is not None and not self._waits(frame):  # None: a training has taken it over
            raise _error(asked)

    def _waits(self, frame: FrameType | None) -> bool:
        """Whether a module is being imported; if so, `later` looks again in a moment."""
        if not _HAS_TIMER or _imports(frame) <= self.imports_before:
            return False
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
        return True


def _imports(frame: FrameType | None) -> int:
    """Counts the frames of Python's import system among a frame and its callers."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename == _IMPORT_SYSTEM
        frame = frame.f_back
    return count


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else ImmediateStop()
