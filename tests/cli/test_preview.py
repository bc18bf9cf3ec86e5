"""`--preview` at a terminal: the picture goes to stderr in what the terminal can show, and stdout stays data."""

from __future__ import annotations

import json
import os
import re
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.cli.command_table import COMMANDS
from beitcli.config.fields import settings_of
from beitcli.pictures.attention import percent
from tests.cli.test_contract import at_terminal
from tests.conftest import Ended
from tests.documents.reading import ROOT


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
        assert "75 of 196 patches (38%)" in said


@pytest.mark.parametrize(("environ", "drawn"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_the_mask_is_shown_once_and_all_of_it_on_a_terminal_of_24_lines(
    picture: Callable, environ: dict[str, str], drawn: bool
) -> None:
    """As a picture, or in letters where the terminal shows none."""

    def work() -> int:
        termios.tcsetwinsize(2, (24, 80))
        return main(["mask-preview", str(picture("a.png")), "--preview"])

    code, said = at_terminal(work, COLUMNS="80", **environ)
    assert code == 0
    assert ("··" in said) == (not drawn)
    assert ("▀" in said) == drawn
    if drawn:
        assert said.count("\n") - said.count("\x1b[1A") <= 23  # a bar of progress was there, and is gone


def test_a_misspelt_protocol_is_told_once_and_blocks_are_drawn(picture: Callable, tmp_path: Path) -> None:
    images, out = [str(picture(name)) for name in ("a.png", "b.png")], tmp_path / "out.jsonl"
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    words = ["mask-preview", *images, "--preview"]
    code, said = at_terminal(lambda: main(words), stdout=descriptor, BEIT_TERMINAL_IMAGES="kity")
    os.close(descriptor)
    assert code == 0
    assert len(out.read_text().splitlines()) == 2
    assert (
        " ".join(said.split()).count("BEIT_TERMINAL_IMAGES is 'kity'. Give one of: kitty, iterm, sixel, blocks.") == 1
    )
    assert "\x1b[38;5;" in said


def test_a_misspelt_protocol_does_not_matter_where_nothing_is_drawn(
    picture: Callable, beit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEIT_TERMINAL_IMAGES", "kity")
    ended = beit("mask-preview", picture("a.png"), "--preview")
    assert (ended.code, len(ended.lines)) == (0, 1)
    assert "kity" not in ended.err


def test_attention_is_drawn_beside_the_image_with_its_points(
    picture: Callable, tmp_path: Path, pretrained_run: Path
) -> None:
    image, out = str(picture("a.png")), tmp_path / "out.jsonl"
    words = ["attn-map", image, "--model", str(pretrained_run), "--point", "10,9", "--point", "20,20", "--preview"]
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    code, said = at_terminal(lambda: main(words), stdout=descriptor, COLORTERM="truecolor")
    os.close(descriptor)
    document = json.loads(out.read_text())
    assert (code, len(document["maps"])) == (0, 2)
    assert "\x1b[38;2;" in said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert "point 1 at pixel 10, 9" in plain
    assert "point 2 at pixel 20, 20" in plain
    largest = max(max(row) for row in document["maps"][0]["attention"])
    assert f"at most {percent(largest)}" in " ".join(plain.split())
    blocks = [line for line in plain.splitlines() if "▀" in line or "▄" in line]
    assert max(line.count("▀") + line.count("▄") for line in blocks) > 3 * 24 - 6  # three panels side by side


def test_neighbours_are_drawn_beside_the_query(
    picture: Callable, tmp_path: Path, labelled_folder: Path, pretrained_run: Path
) -> None:
    image, out = str(picture("a.png")), tmp_path / "out.jsonl"
    words = ["embed", str(pretrained_run), str(labelled_folder), "--query", image, "--k", "2", "--preview"]
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT)
    code, said = at_terminal(lambda: main([*words, "--workers", "0"]), stdout=descriptor, COLORTERM="truecolor")
    os.close(descriptor)
    document = json.loads(out.read_text())
    assert (code, len(document["neighbours"]), document["output"]) == (0, 2, None)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert "query  a.png" in plain
    for each in document["neighbours"]:
        assert f"{each['similarity']:.3f}  {os.path.basename(each['path'])}" in plain
    blocks = [line for line in plain.splitlines() if "▀" in line or "▄" in line]
    assert max(line.count("▀") + line.count("▄") for line in blocks) > 3 * 24 - 6  # three panels side by side


def test_every_command_that_draws_has_preview() -> None:
    """docs/attention.md names them."""
    drawing = {command.name for command in COMMANDS if "preview" in settings_of(command.config)}
    text = (ROOT / "docs/attention.md").read_text()
    (told,) = re.findall(r"`--preview` \(here, and of ([^)]+)\)", text)
    assert {name.split()[0] for name in re.findall(r"`([^`]+)`", told)} | {"attn-map"} == drawing


def test_preview_of_features_needs_a_query(picture: Callable, beit: Callable[..., Ended]) -> None:
    ended = beit("embed", "random", picture("a.png"), "--preview")
    assert ended.code == 2
    assert "--preview has no effect without --query. Leave it out." in " ".join(ended.err.split())
