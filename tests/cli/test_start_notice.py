"""The word that a command is starting, which gives way to whatever is written next."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from beitcli.cli import start_notice, streams
from beitcli.cli.console import CommandConsole


class Terminal(io.StringIO):
    """A terminal that tells when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.written.set()


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Makes stderr a terminal; within a test, as pytest sets its own stderr before each."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(start_notice, "_AFTER_SECONDS", 0.0)
    return made


def test_the_notice_is_erased_before_a_line_and_never_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    console = CommandConsole()
    console.say_starting()
    assert terminal.written.wait(60)
    console.print_error(ValueError("x"))
    console.close()
    assert terminal.getvalue().startswith("\x1b[2mstarting ...\x1b[0m\r\r\x1b[K\x1b[1;31merror: ")
    assert terminal.getvalue().count("starting") == 1
    assert streams.before_output is None


def test_results_on_stdout_erase_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = terminal_of(monkeypatch)
    console = CommandConsole()
    console.say_starting()
    assert terminal.written.wait(60)
    console.print_line("result")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert capsys.readouterr().out == "result\n"


def test_a_quick_command_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setattr(start_notice, "_AFTER_SECONDS", 3600.0)
    console = CommandConsole()
    console.say_starting()
    console.close()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("quiet", "term", "is_terminal"), [(True, "xterm", True), (False, "dumb", True), (False, "xterm", False)]
)
def test_quiet_jobs_dumb_terminals_and_pipes_show_none(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, term: str, is_terminal: bool
) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(terminal, "isatty", lambda: is_terminal)
    console = CommandConsole(quiet=quiet)
    console.say_starting()
    assert streams.before_output is None
    console.close()
    assert terminal.getvalue() == ""
