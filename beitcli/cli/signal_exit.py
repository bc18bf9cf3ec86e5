"""Immediate exit on SIGTERM and SIGUSR1 outside a training loop, with cleanup and a message.

A scheduler may end a job while it imports libraries, opens data or writes tokens. Without a handler the process would
leave temporary files behind, and its exit code would not tell the scheduler that it can be restarted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class ImmediateStop(BaseException):
    """Raised in the main thread at any point, like KeyboardInterrupt."""


@contextmanager
def immediate_stop_on_signal() -> Iterator[None]:
    """Turns the signals into ImmediateStop; training loops replace these handlers and restore them."""
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
    raise ImmediateStop
