"""Stop requests: SIGTERM, SIGUSR1, SIGHUP (exit code 75), Ctrl-C (130; a second one stops at once). Imports no torch.

From the first line of the program on a signal is never lost: until the command is known it is noted
(`note_signals`); then it raises at once (`cli/signal_exit.py`) or, in a training, is looked at between steps
(`StopRequest`). An error raised by a handler may be swallowed where it strikes, in an import or a destructor, so the
handlers note the signal too, and what comes next looks at the note.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from beitcli.errors import Interrupted, SignalStop, Stopped

_NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP")
_noted: int | None = None  # by this process, outside trainings
_stop_requested: int | None = None  # by a training, between steps


def stop_signals() -> tuple[int, ...]:
    """Returns the signals that ask for a stop, Ctrl-C aside, except ignored ones, such as SIGHUP under nohup."""
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def signal_words(number: int | None) -> str:
    """Returns what a person calls a signal: `Ctrl-C`, or its name; `a signal` if it is not known."""
    if number == signal.SIGINT:
        return "Ctrl-C"
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return "a signal"


def note_signals() -> None:
    """Has the signals noted from now on; a second Ctrl-C raises. To be called before anything slow is imported."""
    for number in stop_signals():
        signal.signal(number, _note_only)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note_only)


def restore_signals() -> None:
    """Undoes `note_signals` when the command has ended: a signal ends a process that hangs on its way out."""
    for name in (*_NAMES, "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _note_only:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def note(number: int) -> None:
    """Notes the first signal."""
    global _noted
    if _noted is None:
        _noted = number


def noted() -> int | None:
    """Returns the signal that was noted and not yet obeyed; None if there is none."""
    return _noted


def raise_noted() -> None:
    """Raises Stopped if a signal is noted: to be called before C++ code that waits without hearing signals."""
    if _noted is not None:
        kind = Interrupted if _noted == signal.SIGINT else SignalStop
        raise kind(f"by {signal_words(_noted)}, at once.")


def forget() -> None:
    """Removes the note, once the signal is obeyed."""
    global _noted
    _noted = None


def _note_only(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _noted is not None:
        raise KeyboardInterrupt
    note(number)


def stop_requested() -> int | None:
    """Returns the signal after which a training of this process is about to stop; None if there is none."""
    return _stop_requested


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Context in which this thread gets no stop signal and no Ctrl-C; a process forked in it starts without them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    numbers = {getattr(signal, name) for name in (*_NAMES, "SIGINT")}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_stop_requested(number: int | None) -> None:
    global _stop_requested
    _stop_requested = number


class StopRequest:
    """Records a signal, which the training loop checks between steps.

    Handlers are set only in the main thread, and restored on exit.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            ignores_interrupts = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # a shell's background job
            for number in (*stop_signals(), *(() if ignores_interrupts else (signal.SIGINT,))):
                self._former[number] = signal.signal(number, self._note)
            earlier = noted()
            if earlier is not None:
                self._receive(earlier)
            forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
        _set_stop_requested(None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        if self.received is None:
            self._receive(number)

    def _receive(self, number: int | None) -> None:
        self.received = number
        _set_stop_requested(number)

    def __bool__(self) -> bool:
        return self.received is not None

    def stopped(self, message: str, hint: str) -> Stopped:
        """Returns the error that ends the run with the signal's exit code."""
        kind = Interrupted if self.received == signal.SIGINT else SignalStop
        return kind(message, hint)
