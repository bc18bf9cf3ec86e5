"""Immediate exit on SIGTERM, SIGUSR1 and SIGHUP outside a training loop, with cleanup and a message.

A scheduler may end a job while it imports libraries, opens data or writes tokens. Without a handler the process would
leave temporary files behind, and its exit code would not tell the scheduler that it can be restarted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from beitcli.runtime.signals import note, noted, stop_signals


class ImmediateStop(BaseException):
    """Raised in the main thread at any point, like KeyboardInterrupt."""


@contextmanager
def immediate_stop_on_signal() -> Iterator[None]:
    """Turns the signals into ImmediateStop, and those noted before; training loops replace these handlers meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [*stop_signals()]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    former = {number: signal.signal(number, _raise) for number in numbers}
    try:
        if (number := noted()) is not None:
            _raise(number, None)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    note(number)  # the error may be swallowed where it strikes
    raise KeyboardInterrupt if number == signal.SIGINT else ImmediateStop
