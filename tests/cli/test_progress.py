"""The bar of a training on a terminal says at once that a signal is heard, though the step goes on."""

from __future__ import annotations

import io
import os
import signal

from rich.console import Console

from beitcli.cli.progress import LiveProgress
from beitcli.engine.events import Progress
from beitcli.runtime.signals import StopRequest, stop_requested


def drawn(bar: LiveProgress, out: io.StringIO) -> str:
    out.seek(0)
    out.truncate()
    bar._bar.refresh()
    return out.getvalue()


def test_a_bar_says_that_a_signal_is_heard_while_the_step_goes_on() -> None:
    out = io.StringIO()
    bar = LiveProgress(Console(file=out, force_terminal=True, width=80))
    with StopRequest() as stop:
        bar.show(Progress("pretrain", 3, 10, "step"))
        assert "stops after this step" not in drawn(bar, out)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert "Ctrl-C: stops after this step. Ctrl-C again stops at once." in drawn(bar, out)
    assert stop_requested() is None
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM: stops after this step. Ctrl-C stops at once." in drawn(bar, out)
    bar.stop()
