"""Signals at every stage of a run: saved, stopped, said how to go on, and gone on with to the same end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beitcli.cli.app import main
from beitcli.engine import pretrain as pretraining
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.trainer import loop as training
from beitcli.runtime.storage.checkpoint import step_of
from tests.faults.runs import (
    BATCH,
    STEPS,
    command,
    note_images,
    on_call,
    on_change,
    outcome,
    resumption,
    whole_checkpoints,
)
from tests.helpers.forked import Ended, forked

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> dict[str, object]:
    """The outcome of the run that nothing stops."""
    root = tmp_path_factory.mktemp("whole")

    def work() -> int:
        note_images(root / "images")
        return main(command(labelled_folder, tokenizer_run, root / "run"))

    assert forked(work).code == 0
    return outcome(root / "run", root / "images")


def interrupted(argv: list[str], images: Path, *harms: Callable[[], object]) -> Ended:
    def work() -> int:
        note_images(images)
        for harm in harms:
            harm()
        return main(argv)

    return forked(work)


STAGES: dict[str, Callable[[int, Path], object]] = {
    "first-step": lambda number, run: on_call(training, "optimizer_step", 1, send(number)),
    "mid-step": lambda number, run: on_call(torch.nn.utils, "get_total_norm", 6, send(number)),
    "evaluation": lambda number, run: on_call(PretrainTask, "evaluate", 1, send(number)),
    "save-files": lambda number, run: on_change(run / "checkpoints", 6, send(number)),
    "save-rename": lambda number, run: on_change(run / "checkpoints", 15, send(number)),
    "before-the-first-step": lambda number, run: on_call(pretraining, "_job", 1, send(number)),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("stage", list(STAGES))
def test_a_signal_at_any_stage_saves_once_and_the_run_goes_on_to_the_same_end(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, whole: dict, stage: str, number: int
) -> None:
    run, images = tmp_path / "run", tmp_path / "images"
    ended = interrupted(command(labelled_folder, tokenizer_run, run), images, lambda: STAGES[stage](number, run))
    assert ended.code == (130 if number == signal.SIGINT else 75), ended.err
    checkpoints = whole_checkpoints(run)
    step = step_of(run / "checkpoints" / checkpoints[0])
    assert 0 <= step < STEPS
    said = " ".join(ended.err.split())
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert f"stopped: by {by} at step {step}; progress is saved." in said
    assert f"beit pretrain --out {run} --resume" in said
    assert "the report so far" not in said  # --quiet
    assert "Traceback" not in said
    assert interrupted(resumption(run), images).code == 0
    assert outcome(run, images) == whole
    assert len(whole["images"]) == STEPS
    assert {len(each) for each in whole["images"].values()} == {BATCH}


def test_a_stop_in_the_tokenizer_of_a_pretraining_says_so(tmp_path: Path, labelled_folder: Path) -> None:
    run = tmp_path / "run"
    argv = [
        "pretrain", labelled_folder, "--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 4,
        "--tokenizer-steps", 9, "--steps", 2, "--workers", 0, "--device", "cpu", "--out", run,
    ]  # fmt: skip
    harm = lambda: on_call(training, "optimizer_step", 4, send(signal.SIGINT))  # noqa: E731
    ended = interrupted([str(word) for word in argv], tmp_path / "images", harm)
    assert ended.code == 130, ended.err
    told = r"^stopped: by Ctrl-C at step \d of the tokenizer, before pretraining; progress is saved\.$"
    assert re.search(told, ended.err, re.MULTILINE), ended.err
    assert f"the report so far: beit report {run / 'tokenizer'}" in " ".join(ended.err.split())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_before_there_is_a_run_ends_at_once_and_leaves_nothing(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    argv = command(labelled_folder, tokenizer_run, run)
    ended = interrupted(argv, tmp_path / "images", lambda: on_call(pretraining, "open_images", 1, send(number)))
    assert ended.code == code, ended.err
    assert "same command again" in ended.err
    assert not run.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_to_train_tokenizer_saves_once_and_the_run_goes_on(
    tmp_path: Path, labelled_folder: Path, beit: Callable, number: int
) -> None:
    run = tmp_path / "run"
    argv = [
        "train-tokenizer", labelled_folder, "--recipe", "tiny", "--vocab-size", 16, "--size", 16, "--width", 8,
        "--steps", 20, "--batch-size", 4, "--save-every", 20, "--log-every", 1, "--workers", 0, "--device", "cpu",
        "--out", run,
    ]  # fmt: skip
    harm = lambda: on_call(training, "optimizer_step", 7, send(number))  # noqa: E731
    ended = interrupted([str(word) for word in argv], tmp_path / "images", harm)
    assert (ended.code, ended.out) == (130 if number == signal.SIGINT else 75, ""), ended.err
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert re.search(rf"^stopped: by {by} at step \d+; progress is saved\.$", ended.err, re.MULTILINE)
    assert f"beit train-tokenizer --out {run} --resume" in ended.err
    assert "error" not in ended.err
    assert "Traceback" not in ended.err
    (saved,) = whole_checkpoints(run)
    assert 0 < step_of(run / "checkpoints" / saved) < 20
    (document,) = beit("train-tokenizer", "--out", run, "--resume", "--json").lines
    assert document["steps"] == 20
    logged = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 21))


def with_own_tokenizer(data: Path, out: Path) -> list[str]:
    """Its first six steps are the tokenizer's."""
    return command(data, "own", out, "--tokenizer-steps", 6)


@pytest.fixture(scope="module")
def whole_with_tokenizer(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path) -> dict[str, object]:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert forked(lambda: main(with_own_tokenizer(labelled_folder, run))).code == 0
    return outcome(run)


@pytest.mark.parametrize(
    ("step", "number", "saved"),
    [
        (2, signal.SIGTERM, "tokenizer/checkpoints/step-0000002"),
        (6, signal.SIGINT, "tokenizer/checkpoints/step-0000006"),  # its last: it is not measured yet
        (9, signal.SIGUSR1, "checkpoints/step-0000003"),
    ],
    ids=str,
)
def test_a_signal_while_pretraining_trains_its_own_tokenizer(
    tmp_path: Path, labelled_folder: Path, whole_with_tokenizer: dict, step: int, number: int, saved: str
) -> None:
    run = tmp_path / "run"
    harm = lambda: on_call(training, "optimizer_step", step, send(number))  # noqa: E731
    ended = interrupted(with_own_tokenizer(labelled_folder, run), tmp_path / "images", harm)
    assert ended.code == (130 if number == signal.SIGINT else 75), ended.err
    assert whole_checkpoints((run / saved).parents[1])[0] == Path(saved).name
    assert f"beit pretrain --out {run} --resume" in " ".join(ended.err.split())
    assert forked(lambda: main(resumption(run))).code == 0
    assert outcome(run) == whole_with_tokenizer


@pytest.mark.parametrize("change", [3, 9, 14, 17, 30])
def test_a_second_ctrl_c_in_a_save_stops_at_once_with_a_whole_checkpoint_or_none(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, whole: dict, change: int
) -> None:
    run, images = tmp_path / "run", tmp_path / "images"

    def twice() -> None:
        send(signal.SIGINT)()
        time.sleep(0.05)  # the first is seen, in whichever thread this is
        send(signal.SIGINT)()

    argv = command(labelled_folder, tokenizer_run, run)
    ended = interrupted(argv, images, lambda: on_change(run / "checkpoints", change, twice))
    assert ended.code == 130, ended.err
    assert f"beit pretrain --out {run} --resume" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert interrupted(resumption(run), images).code == 0
    assert outcome(run, images) == whole
    assert whole_checkpoints(run)[0] == f"step-{STEPS:07d}"


def test_a_signal_while_libraries_are_imported_is_an_exit_code_too(tmp_path: Path, labelled_folder: Path) -> None:
    """A new interpreter; the signal comes as soon as a handler is there, seconds before the first step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "beitcli", *command(labelled_folder, "own", tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.startswith("stopped: by SIGTERM, at once.")
    assert "Traceback" not in err


@pytest.mark.parametrize("suffix", [".jsonl", ".npz"])
def test_a_signal_while_tokens_are_written_keeps_those_that_are_made(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, suffix: str, beit: Callable
) -> None:
    from beitcli.engine import tokenize

    target, other = tmp_path / f"tokens{suffix}", tmp_path / f"whole{suffix}"
    argv = ["tokenize", str(labelled_folder), "--tokenizer", str(tokenizer_run), "--batch-size", "4", "--workers", "0"]

    def work() -> int:
        on_call(tokenize, "_tokenized", 3, send(signal.SIGTERM))
        return main([*argv, "-o", str(target)])

    ended = forked(work)
    assert ended.code == 75, ended.err
    left = {".npz": {"tokens.npz.partial", "tokens.npz.partial.jsonl"}}.get(suffix, {target.name})
    assert {path.name for path in tmp_path.iterdir()} == left
    assert beit(*argv, "-o", target, "--resume").code == 0
    assert beit(*argv, "-o", other).code == 0
    if suffix == ".jsonl":
        assert target.read_bytes() == other.read_bytes()
    else:
        import numpy as np

        first, second = np.load(target), np.load(other)
        assert all(np.array_equal(first[name], second[name]) for name in ("paths", "tokens", "grid"))
