"""Run folders and caches that others can write to or may not read, and folders where files should be."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.trainer import setup
from tests.faults.runs import command, resumption, whole_checkpoints
from tests.helpers.forked import forked

pytestmark = pytest.mark.faults


@pytest.fixture
def run(pretrained_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pretrained_run, tmp_path / "run")


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    file = tmp_path / "thesis.txt"
    file.write_text("three years")
    return file


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "bad-images.jsonl", "README.md", "arithmetic.json"])
def test_links_in_a_run_folder_are_refused_by_name(beit: Callable, run: Path, thesis: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(thesis)
    ended = beit(*resumption(run))
    assert ended.code == 4
    assert f"'{run / name}' cannot be written: it is a link" in ended.err
    assert thesis.read_text() == "three years"


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "bad-images.jsonl", "README.md", "checkpoints/latest"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_folders_and_pipes_in_place_of_files_are_named(beit: Callable, run: Path, name: str, kind: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir() if kind == "folder" else os.mkfifo(run / name)
    ended = beit(*resumption(run))
    if name == "checkpoints/latest" and kind == "pipe":  # it is replaced, as every whole file is
        assert ended.code == 0
        assert whole_checkpoints(run)
    else:
        assert ended.code == 4, ended.err
        assert f"'{run / name}'" in ended.err
        assert kind in ended.err
        assert "Traceback" not in ended.err


def test_a_checkpoint_behind_a_link_is_used_and_its_link_alone_removed(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    assert beit(*command(labelled_folder, tokenizer_run, run)).code == 0
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "step-0000012")
    (checkpoints / "step-0000008").rename(away)
    (checkpoints / "step-0000008").symlink_to(away)
    ended = beit(*resumption(run, "--keep", 1))
    assert ended.code == 0, ended.err
    assert whole_checkpoints(run) == ["step-0000012"]
    assert (away / "model.safetensors").exists()


def test_a_link_in_a_token_cache_is_not_written_through(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path, thesis: Path
) -> None:
    cache = tmp_path / "cache"
    argv = command(labelled_folder, tokenizer_run, tmp_path / "a", "--token-cache", cache)
    assert beit(*argv).code == 0
    for place in (*cache.glob("*/*.rows"), *cache.glob("*/meta.json")):
        place.unlink()
        place.symlink_to(thesis)
    argv = command(labelled_folder, tokenizer_run, tmp_path / "b", "--token-cache", cache)
    ended = beit(*[word for word in argv if word != "--quiet"])
    assert ended.code == 0
    assert "it is a link, which is not followed" in ended.err
    assert thesis.read_text() == "three years"


def test_weights_have_the_mode_of_the_umask(labelled_folder: Path, tokenizer_run: Path, tmp_path: Path) -> None:
    def work() -> int:
        os.umask(0o022)
        return main(command(labelled_folder, tokenizer_run, tmp_path / "run"))

    assert forked(work).code == 0
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-0000004", "checkpoints/step-0000004/SHA256SUMS",
                                  "checkpoints/step-0000004/model.safetensors",
                                  "checkpoints/step-0000004/config.json"])  # fmt: skip
def test_what_may_not_be_read_is_named_and_nobody_is_told_to_train_again(
    run: Path, picture: Callable, name: str
) -> None:
    image = str(picture("a.png"))
    mode = (run / name).stat().st_mode
    (run / name).chmod(0)
    try:
        for argv in (["attn-map", image, "--model", str(run)], ["mask-preview", image, "--model", str(run)]):
            ended = forked(lambda argv=argv: main(argv), powerless=True)
            assert ended.code == 4, ended.err
            assert "ermission denied" in ended.err
            assert not {"damaged (", "rain again", "no checkpoint"} & {
                said for said in ("damaged (", "rain again", "no checkpoint") if said in ended.err
            }, ended.err
    finally:
        (run / name).chmod(mode)


def test_runs_of_one_second_get_names_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled_folder: Path
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, "datetime", Clock)
    config = resolve(PretrainConfig, {"data": [str(labelled_folder)], "recipe": "tiny"}).config
    names = [str(setup.run_path(config)) for _ in range(3)]
    assert names == [f"runs/pretrain-20260102-030405{more}" for more in ("", "-2", "-3")]


def test_commands_in_a_model_card_and_a_config_are_quoted(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r $(touch pwned)\n<b>x</b>|"
    assert beit(*command(labelled_folder, tokenizer_run, out)).code == 0
    card, settings = (out / "README.md").read_text(), (out / "config.toml").read_text()
    lines = [line for line in card.splitlines() if line.startswith("beit ")]
    assert len(lines) == 3
    assert all("$'" in line and "\\n" in line for line in lines)
    assert settings.splitlines()[0].startswith("# beit ")
    assert "$'" in settings.splitlines()[0]
    assert beit(*resumption(out)).code == 0
