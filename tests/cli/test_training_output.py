"""What a training writes while it runs: JSON apart from progress, and lines that a terminal of 80 x 24 holds."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

COLUMNS, ROWS = 80, 24
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)")
_COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")
# Makes the terminal that is stdin the controlling one, so that ^C is a signal, and becomes the program.
_BEGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class OnTerminal:
    """`beit WORDS` on a terminal of its own."""

    def __init__(self, words: list[object], **environment: str) -> None:
        self._terminal, own = pty.openpty()
        fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, sys.executable, "-m", "beitcli", *map(str, words)],
            stdin=own,
            stdout=own,
            stderr=own,
            start_new_session=True,
            env=kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment,
        )
        os.close(own)
        self.text = ""

    def read_until(self, seen: Callable[[str], object], seconds: float = 240) -> None:
        """Reads on until what was written so far satisfies `seen`, or the program has ended."""
        deadline = time.monotonic() + seconds
        while not seen(self.text):
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._terminal, 65_536).decode(errors="replace")
                except OSError:  # every process has left the terminal
                    return

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def end(self) -> int:
        self.read_until(lambda _: False)
        return self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._terminal)


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., OnTerminal]]:
    started: list[OnTerminal] = []

    def start(words: list[object], **environment: str) -> OnTerminal:
        started.append(OnTerminal(words, **environment))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def words(labelled_folder: Path, tokenizer_run: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The command line of a small run, into RUN below the test's folder."""

    def command(steps: int, *more: object) -> list[object]:
        small = ("--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--workers", 0, "--device", "cpu")
        tokenizer = ("--recipe", "tiny", "--tokenizer", tokenizer_run)
        return ["pretrain", labelled_folder, *tokenizer, *small, "--steps", steps, "--out", tmp_path / "run", *more]

    return command


def drawn_lines(text: str) -> list[str]:
    """What stood on each line, without what steers the terminal."""
    return [line for line in re.split(r"[\r\n]+", _ESCAPE.sub("", text)) if line.strip()]


def test_json_of_a_training_is_all_of_stdout_and_progress_goes_to_stderr(beit: Callable, words: Callable) -> None:
    ended = beit(*words(4, "--save-every", 2, "--log-every", 1, "--json"))
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report["run"].endswith("run")
    assert 0 <= report["masked_accuracy"] <= 1
    assert re.search(r"^pretrain: step \d/4, .*masked accuracy", ended.err, re.MULTILINE)
    assert re.search(r"^saved step 4", ended.err, re.MULTILINE)


@pytest.mark.slow
def test_a_running_training_fits_80_columns_and_goes_on_after_ctrl_c(
    on_terminal: Callable, words: Callable, tmp_path: Path
) -> None:
    run = on_terminal(words(100_000, "--save-every", 20, "--log-every", 5))
    run.read_until(lambda text: "saved step 40" in text)
    bar, figures = re.compile(r"pretrain .*\d+/100,000"), re.compile(r"masked accuracy [\d.]+%.* guessing")
    run.read_until(lambda text: any(map(figures.search, drawn_lines(text)[-6:])))
    shown = drawn_lines(run.text)
    assert any(map(bar.search, shown))
    assert any(figures.search(after) for line, after in pairwise(shown) if bar.search(line))
    of_training = [line for line in shown if re.match(r"\s*(pretrain|masked accuracy|saved)\b", line)]
    assert any(re.match(r"pretrain: step \d+, \d+ held-out: masked accuracy", line) for line in of_training)
    assert max(map(len, of_training)) <= COLUMNS, max(of_training, key=len)  # warnings are sentences
    run.type(b"\x03")
    assert run.end() == 130
    said = " ".join(drawn_lines(run.text[-3000:]))
    assert "stopped" in said
    assert re.search(rf"beit pretrain --out {re.escape(str(tmp_path / 'run'))} --resume", said.replace("  ", " "))


@pytest.mark.slow
def test_no_color_and_a_dumb_terminal_get_what_they_ask_for(
    on_terminal: Callable, words: Callable, tmp_path: Path
) -> None:
    plain = on_terminal(words(6, "--save-every", 3), NO_COLOR="1")
    assert plain.end() == 0
    assert not _COLOUR.search(plain.text)
    assert "masked accuracy" in plain.text
    dumb = on_terminal(words(6, "--save-every", 3, "--out", tmp_path / "dumb"), TERM="dumb")
    assert dumb.end() == 0
    assert "\x1b" not in dumb.text
    assert "\r" not in dumb.text.replace("\r\n", "\n")
    assert re.search(r"pretrain: step \d/6, .*masked accuracy", dumb.text)
