"""Folders that are made above an output are told, once each, whatever the command and the option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.new_folders import tell_new_folders
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.events import Event, Note


@pytest.fixture
def image(tmp_path: Path, picture: Callable, monkeypatch: pytest.MonkeyPatch) -> str:
    made = str(picture("a.png"))
    monkeypatch.chdir(tmp_path)
    return made


def notes(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.endswith("a new folder.")]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("new/x.png", ["'new' is not there yet: a new folder."]),
        ("new/deep/x.png", ["'new' is not there yet: a new folder."]),
        ("there/new/x.png", ["'there/new' is not there yet: a new folder."]),
        ("x.png", []),
        ("there/x.png", []),
        ("new/", []),  # is what was asked for
        ("new/deep/", ["'new' is not there yet: a new folder."]),
    ],
)
def test_a_folder_above_an_output_is_told(beit: Callable, image: str, output: str, told: list[str]) -> None:
    Path("there").mkdir()
    ended = beit("mask-preview", image, "-o", output)
    assert ended.code == 0, ended.err
    assert notes(ended.err) == told
    assert notes(beit("mask-preview", image, "-o", output, "--overwrite").err) == []


def test_quiet_says_nothing_of_it(beit: Callable, image: str) -> None:
    assert beit("mask-preview", image, "-o", "new/x.png", "-q").err == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["doctor", "IMAGE", "-o", "new/page.html", "-o", "new/good.txt"],
        ["attn-map", "IMAGE", "--model", "RUN", "-o", "new/x.png"],
        ["embed", "RUN", "IMAGE", "-o", "new/x.npy"],
        ["tokenize", "IMAGE", "--tokenizer", "RUN", "-o", "new/x.jsonl", "--map", "new/map.png"],
        ["export", "RUN", "--to", "timm", "-o", "new/model"],
        ["report", "RUN", "-o", "new/page.html"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_tells_it_once(beit: Callable, image: str, pretrained_run: Path, argv: list[str]) -> None:
    words = {"IMAGE": image, "RUN": str(pretrained_run)}
    ended = beit(*(words.get(word, word) for word in argv))
    assert ended.code == 0, ended.err
    assert notes(ended.err) == ["'new' is not there yet: a new folder."]
    assert Path("new").is_dir()


@pytest.mark.parametrize(
    ("out", "told"),
    [("runs/mine", []), ("rusn/mine", ["'rusn' is not there yet: a new folder."]), ("mine", []), (None, [])],
    ids=str,
)
def test_of_runs_every_folder_but_the_usual_one_is_told(image: str, out: str | None, told: list[str]) -> None:
    events: list[Event] = []
    for is_dry in (True, False):
        flags = {"recipe": "tiny", "data": [image], "dry_run": is_dry} | ({"out": out} if out else {})
        tell_new_folders(resolve(PretrainConfig, flags).config, events.append)
        assert [each.message for each in events if isinstance(each, Note)] == ([] if is_dry else told)
