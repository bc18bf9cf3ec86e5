"""Interrupted equals uninterrupted: real processes, real signals, bytes compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.runtime.storage.checkpoint import newest_checkpoint, step_folders

pytestmark = pytest.mark.slow

STEPS = 40
SAVE_EVERY = 4
TIMEOUT = 90  # seconds for a process to come as far as is asked


def command(data: Path, tokenizer: Path, out: Path, workers: int) -> list[str]:
    """23 images in batches of 5: epochs end inside steps; drop path and jitter draw from what a resume must restore."""
    return [
        "pretrain", str(data), "--recipe", "tiny", "--tokenizer", str(tokenizer), "--image-size", "32",
        "--num-masked", "6", "--steps", str(STEPS), "--batch-size", "5", "--micro-batch", "3", "--drop-path", "0.2",
        "--color-jitter", "0.4", "--save-every", str(SAVE_EVERY), "--log-every", "1", "--keep", "3",
        "--workers", str(workers), "--device", "cpu", "--precision", "fp32", "--cpu-matmul", "torch",
        "--out", str(out), "--quiet",
    ]  # fmt: skip # each run alone would choose its arithmetic by time


@pytest.fixture(scope="module")
def whole(tmp_path_factory, labelled_folder, tokenizer_run) -> Path:
    """The run that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(labelled_folder, tokenizer_run, run, workers=0)) == 0
    return run


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """A process of its own group, as a terminal or a scheduler makes it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "beitcli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    path = run / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, errors


def losses(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["epoch"], line["loss"], line["lr"], line["masked_accuracy"]) for line in lines]


def assert_equal_runs(run: Path, whole: Path) -> None:
    for name in ("model.safetensors", "trainer.safetensors"):
        last, its_last = (step_folders(each / "checkpoints")[0] for each in (run, whole))
        assert last.name == its_last.name == f"step-{STEPS:07d}"
        assert (last / name).read_bytes() == (its_last / name).read_bytes(), name
    assert losses(run) == losses(whole)
    assert [entry[0] for entry in losses(run)] == list(range(1, STEPS + 1))
    metrics = [newest_checkpoint(each).trainer["figures"] for each in (run, whole)]
    assert metrics[0] == metrics[1]


def resume(run: Path, workers: int) -> int:
    return main(["pretrain", "--out", str(run), "--resume", "--workers", str(workers), "--device", "cpu", "--quiet"])


@pytest.mark.parametrize("views", ["fast", "reference"])
def test_workers_change_no_byte_of_a_run(tmp_path, labelled_folder, tokenizer_run, views):
    runs = {workers: tmp_path / str(workers) for workers in (0, 2, 4)}
    for workers, run in runs.items():
        assert main([*command(labelled_folder, tokenizer_run, run, workers), "--views", views]) == 0
    assert_equal_runs(runs[2], runs[0])
    assert_equal_runs(runs[4], runs[0])


def test_the_views_are_not_one_another(tmp_path, labelled_folder, tokenizer_run, whole, beit):
    run = tmp_path / "run"
    assert main([*command(labelled_folder, tokenizer_run, run, 0), "--views", "reference"]) == 0
    assert losses(run) != losses(whole)
    ended = beit("pretrain", "--out", run, "--resume", "--views", "fast")
    assert ended.code == 2
    assert '--views: the run has "reference", given is "fast"' in " ".join(ended.err.split())


@pytest.mark.parametrize(("workers", "resumed_workers", "views"), [(0, 2, "fast"), (2, 0, "fast"), (2, 0, "reference")])
def test_a_killed_run_resumed_equals_the_whole_one(
    tmp_path, labelled_folder, tokenizer_run, whole, workers, resumed_workers, views
):
    run = tmp_path / "run"
    if views != "fast":
        whole = tmp_path / "whole"
        assert main([*command(labelled_folder, tokenizer_run, whole, 0), "--views", views]) == 0
    process = start([*command(labelled_folder, tokenizer_run, run, workers), "--views", views])
    try:
        wait_for_step(process, run, SAVE_EVERY + 3)
        while process.poll() is None and not (run / "checkpoints" / "latest").exists():  # written beside training
            time.sleep(0.001)
    finally:
        process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    assert SAVE_EVERY <= checkpoint.trainer["step"] < STEPS
    assert resume(run, resumed_workers) == 0
    assert_equal_runs(run, whole)


def test_a_killed_run_resumed_by_the_command_line_equals_the_whole_one(tmp_path, labelled_folder, tokenizer_run, whole):
    run = tmp_path / "run"
    process = start(command(labelled_folder, tokenizer_run, run, workers=0))
    try:
        wait_for_step(process, run, 2)  # before the first checkpoint: it begins anew
    finally:
        process.kill()
    finish(process)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "los')
    again = start([*command(labelled_folder, tokenizer_run, run, workers=0), "--resume"])
    code, out, errors = finish(again)
    assert (code, out, errors) == (0, f"{run}\n", "")
    assert_equal_runs(run, whole)


@pytest.mark.parametrize(
    ("number", "code", "workers", "to_group"),
    [
        (signal.SIGTERM, 75, 0, False),
        (signal.SIGUSR1, 75, 2, True),
        (signal.SIGINT, 130, 2, True),  # Ctrl-C in a terminal goes to every process of the group
        (signal.SIGTERM, 75, 2, True),  # so does a scheduler's or `timeout`'s SIGTERM
    ],
    ids=["SIGTERM", "SIGUSR1-group", "SIGINT-group", "SIGTERM-group"],
)
def test_a_signal_saves_and_stops_and_the_resumed_run_equals_the_whole_one(
    tmp_path, labelled_folder, tokenizer_run, whole, number, code, workers, to_group
):
    run = tmp_path / "run"
    process = start(command(labelled_folder, tokenizer_run, run, workers))
    try:
        wait_for_step(process, run, SAVE_EVERY + 2)
        if to_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        returned, out, errors = finish(process)
    finally:
        process.kill()
    assert (returned, out) == (code, ""), errors
    stopped_at = len(losses(run))
    assert stopped_at < STEPS
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert f"stopped: by {by} at step {stopped_at}; progress is saved." in errors.splitlines()
    assert f"beit pretrain --out {run} --resume" in errors
    assert "error" not in errors
    assert "Traceback" not in errors
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.path.name == f"step-{stopped_at:07d}"
    assert resume(run, workers=0) == 0
    assert_equal_runs(run, whole)
