"""`--preview` at a terminal: the picture goes to stderr in what the terminal can show, and stdout stays data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from tests.cli.test_contract import at_terminal


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, "\x1b[38;5;"),
        ({"COLORTERM": "truecolor"}, "\x1b[38;2;"),
        ({"TERM": "xterm-kitty"}, "\x1b_Ga=T,f=100"),
        ({"TERM": "foot"}, "\x1bPq"),
        ({"NO_COLOR": "1"}, "--preview draws nothing: NO_COLOR is set"),
        ({"TERM": "dumb"}, "--preview draws nothing: stderr is no terminal that can show it"),
    ],
    ids=str,
)
def test_preview_is_drawn_as_the_terminal_can_and_stdout_stays_json(
    picture: Callable, tmp_path: Path, environ: dict[str, str], seen: str
) -> None:
    image, out = str(picture("a.png")), tmp_path / "out.jsonl"
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    code, said = at_terminal(lambda: main(["mask-preview", image, "--preview"]), stdout=descriptor, **environ)
    os.close(descriptor)
    assert code == 0
    assert seen in said
    assert json.loads(out.read_text())["path"] == image
    if "nothing" not in seen:
        assert "78 of 196 patches (40%)" in said
