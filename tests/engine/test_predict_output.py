"""`predict -o` of each task, and settings that have no effect on a model: refused, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.engine.report.record import read_measured
from tests.conftest import Ended


def test_lines_of_a_classifier_go_into_a_file(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "found.jsonl"
    piped = beit("predict", finetuned_run, labelled_folder / "red", "--workers", 0)
    ended = beit("predict", finetuned_run, labelled_folder / "red", "--workers", 0, "-o", file)
    assert (ended.code, ended.out) == (0, "")
    assert "8 images" in ended.err
    assert file.read_text() == piped.out
    again = beit("predict", finetuned_run, labelled_folder / "blue", "-o", file)
    assert again.code == 2
    assert file.read_text() == piped.out
    assert beit("predict", finetuned_run, labelled_folder / "red", "-o", file, "--top", 1, "--overwrite").code == 0
    assert [len(json.loads(line)["top"]) for line in file.read_text().splitlines()] == [1] * 8


def test_a_file_of_lines_names_what_cannot_be_read(
    beit: Callable, finetuned_run: Path, picture: Callable, tmp_path: Path
) -> None:
    bad, good, file = tmp_path / "bad.png", picture("good.png"), tmp_path / "found.jsonl"
    bad.write_bytes(b"no image")
    assert beit("predict", finetuned_run, bad, good, "-o", file).code == 3
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["path"], "error" in first) == (str(bad), True)
    assert (second["path"], "label" in second) == (str(good), True)
    file.unlink()
    assert beit("predict", finetuned_run, tmp_path / "none.png", "-o", file).code == 3
    assert not file.exists()


@pytest.mark.parametrize("top1", [0.34, 0.38, 0.9])
def test_a_classifier_that_guesses_is_told(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, tmp_path: Path, top1: float
) -> None:
    """Not one that has begun to tell the classes apart: of 2,000 images 38% are more than chance."""
    is_good = top1 > 0.34
    run = tmp_path / "run"
    shutil.copytree(finetuned_run, run)
    row = {"step": 4, "held_out_top1": top1, "held_out_images": 2000, "held_out_loss": 1.0}
    later = row | {"step": 5, "held_out_top1": 0.1}  # of a checkpoint that is not there
    (run / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(later)}\n")
    (run / "evaluation.json").write_text(json.dumps({"classes": list("abc"), "labelled": [34, 33, 33], "step": 4}))
    ended = beit("predict", run, labelled_folder / "red" / "01.png")
    assert ended.code == 0
    assert len(ended.lines) == 1
    told = f"warning: Doubt what '{run}' predicts, by the record of its run. It is not shown to be better than"
    assert [line.startswith(told) for line in ended.err.splitlines()] == ([] if is_good else [True])
    assert beit("predict", run, labelled_folder / "red" / "01.png", "--quiet").err == ""


def test_what_a_model_is_told_of_is_read_from_the_end_of_a_long_log(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('command = "finetune"\n')
    rows = [{"step": step, "loss": 1.0} | ({"held_out_top1": step / 1e6} if step % 1000 == 0 else {})
            for step in range(1, 60_001)]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.mkfifo(tmp_path / "bad-images.jsonl")
    measured = read_measured(tmp_path, 59_999)
    assert measured.measurings[-2:] == [(58_000, {"top1": 0.058}), (59_000, {"top1": 0.059})]
    assert 20 < len(measured.measurings) < 50
    assert read_measured(tmp_path, 1000).measurings == []


def assert_refused(ended: Ended, named: str, kind: str, folder: Path) -> None:
    """Exit code 2 with the setting and the kind of model, and nothing on stdout or in the folder."""
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err
    assert kind in ended.err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["-o", "out"], "-o"),
        (["-o", "out.csv"], "-o"),
        (["--overlay"], "--overlay"),
        (["--window", 16], "--window"),
        (["--stride", 8], "--stride"),
        (["--short-side", 64], "--short-side"),
        (["--multi-scale"], "--multi-scale"),
        (["--flip"], "--flip"),
        (["--score-threshold", 0.1], "--score-threshold"),
    ],
    ids=str,
)
def test_what_a_classifier_does_not_use_is_refused(
    beit: Callable,
    finetuned_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[object],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = beit("predict", finetuned_run, labelled_folder / "red", *argv)
    assert_refused(ended, named, "a classifier", tmp_path)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["-o", "found.jsonl"], "a folder of pictures"),
        (["-o", "-"], "need a folder"),
        (["--overlay"], "--overlay"),
        (["--top", 3], "--top"),
        (["--window", 16], "--window"),
        (["--flip"], "--flip"),
    ],
    ids=str,
)
def test_what_a_detector_does_not_use_is_refused(
    beit: Callable,
    detector_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[object],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = beit("predict", detector_run, labelled_folder / "red", *argv)
    assert_refused(ended, named, "a detector", tmp_path)


@pytest.mark.parametrize("name", ["boxes.png", "boxes.JPG", "boxes.zip"])
def test_no_folder_of_pictures_is_made_of_the_name_of_a_file(
    beit: Callable, detector_run: Path, labelled_folder: Path, tmp_path: Path, name: str
) -> None:
    for inputs in (labelled_folder / "red", labelled_folder / "red" / "01.png"):
        ended = beit("predict", detector_run, inputs, "-o", tmp_path / name)
        assert_refused(ended, "reads as one file, and a folder is needed", f"'{tmp_path}/boxes'", tmp_path)


@pytest.mark.parametrize(
    "argv",
    [["--window", 16], ["--flip"], ["--multi-scale"], ["--ignore-index", 3], ["--reduce-zero-label"]],
    ids=str,
)
def test_eval_of_a_classifier_refuses_the_settings_of_a_segmenter(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, argv: list[object]
) -> None:
    ended = beit("eval", finetuned_run, labelled_folder, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert f"{argv[0]} has no effect" in ended.err
