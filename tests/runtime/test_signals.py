"""Requests to stop: noted, turned into the right error, and the former handlers put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from beitcli.errors import Interrupted, SignalStop
from beitcli.runtime.signals import StopRequest, signal_words

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGTERM, SignalStop, 75), (signal.SIGUSR1, SignalStop, 75), (signal.SIGINT, Interrupted, 130)],
)
def test_a_signal_is_noted_and_becomes_its_error(number, kind, code):
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.received == number
        error = stop.stopped("message", "hint")
    assert type(error) is kind
    assert error.exit_code == code
    assert (error.message, error.hint) == ("message", "hint")


def test_signals_are_called_what_people_call_them():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, None, 999)
    assert [signal_words(each) for each in numbers] == ["Ctrl-C", "SIGTERM", "SIGUSR1", "a signal", "a signal"]


def test_former_handlers_come_back_even_after_an_error():
    def own(number: int, frame: object) -> None:
        raise AssertionError("not to be called")

    def fail_inside() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGUSR1) is not own
            raise ZeroDivisionError

    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGUSR1, own)
    try:
        with pytest.raises(ZeroDivisionError):
            fail_inside()
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])
    assert {number: signal.getsignal(number) for number in NUMBERS} == before


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_handlers_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with StopRequest() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
