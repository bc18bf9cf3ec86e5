"""Stop requests: SIGTERM and SIGUSR1 (exit code 75), Ctrl-C (130; a second one stops at once)."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from beitcli.errors import Interrupted, SignalStop, Stopped

_ASKING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """Records a signal, which the training loop checks between steps.

    Handlers are set only in the main thread, and restored on exit.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (*_ASKING, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = number

    def __bool__(self) -> bool:
        return self.received is not None

    def stopped(self, message: str, hint: str) -> Stopped:
        """Returns the error that ends the run with the signal's exit code."""
        kind = Interrupted if self.received == signal.SIGINT else SignalStop
        return kind(message, hint)
