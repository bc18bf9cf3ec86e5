"""SIGTERM and SIGUSR1 where no training loop looks after them: the command ends at once, cleans up and says so.

A scheduler may end a job while it imports libraries, opens data or writes tokens. Without this the process would die
of the signal, temporary files and all, and the scheduler would not know that it may be started again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class SignalledAtOnce(BaseException):
    """Raised wherever the main thread is, as KeyboardInterrupt is."""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Turns the signals into SignalledAtOnce; training loops replace these handlers and put them back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, _raise) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise SignalledAtOnce
