"""Data that goes bad while a run reads it: images deleted, loader processes killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import Event, Progress
from beitcli.engine.pretrain import pretrain
from beitcli.errors import DataError

pytestmark = [pytest.mark.faults, pytest.mark.slow]

STEPS = 12


def settings(data: Path, tokenizer: Path, out: Path, **changed: Any) -> PretrainConfig:
    flags = {
        "data": [str(data)], "out": str(out), "recipe": "tiny", "image_size": 32, "num_masked": 6, "workers": 0,
        "tokenizer": str(tokenizer), "device": "cpu", "steps": STEPS, "batch_size": 6, "save_every": 4, "log_every": 1,
    }  # fmt: skip
    return resolve(PretrainConfig, flags | changed).config


def after(step: int, harm: Callable[[], object]) -> Callable[[Event], None]:
    """Does harm once, when the step is done."""

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "step" and event.done == step:
            harm()

    return on_event


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_deleted_in_the_middle_of_an_epoch_is_skipped_and_counted(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, workers: int
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    gone = sorted(data.rglob("*.png"))[3]
    config = settings(data, tokenizer_run, tmp_path / "run", workers=workers, holdout=0, max_bad=0.1, steps=24)
    report = pretrain(config, after(2, gone.unlink))
    assert report.step == 24
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert lines == [{"path": str(gone), "error": "no such file"}]


def test_held_out_images_that_vanish_leave_the_others_to_measure_on(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    for number in range(3):
        shutil.copytree(data / "red", data / f"red{number}")
    config = settings(data, tokenizer_run, tmp_path / "run", holdout=2, max_bad=1)

    def delete_half() -> None:
        for path in sorted(data.rglob("*.png"))[::2]:
            path.unlink()

    assert pretrain(config, after(2, delete_half)).step == STEPS


def test_a_data_folder_that_vanishes_ends_the_run_and_its_checkpoint_stays(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    run = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        pretrain(settings(data, tokenizer_run, run, steps=40), after(5, lambda: shutil.rmtree(data)))
    assert "no such file" in caught.value.message
    assert (run / "checkpoints" / "latest").read_text() == "step-0000004\n"
    shutil.copytree(labelled_folder, data)
    assert pretrain(settings(data, tokenizer_run, run, steps=40, resume=True)).step == 40


class Killing:
    """A view that kills its worker at one image, and counts what it was asked for."""

    bytes_per_image = 64 * 3

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number = at, number

    def __call__(self, image: Image.Image, epoch: int, index: int) -> dict[str, np.ndarray]:
        if index == self.at and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), self.number)
        return {"images": np.zeros((3, 8, 8), dtype=np.uint8)}


@pytest.fixture
def source(labelled_folder: Path) -> Source:
    return open_data([str(labelled_folder)], split=None, role="train", labelled=False, sample_size=16)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS], ids=str)
def test_a_killed_worker_is_named_with_the_image_it_read(source: Source, number: signal.Signals, capfd: Any) -> None:
    part = StreamPart(seed=0, batch_size=4, images_seen=0, steps=50)
    batches = training_batches(source, Killing(17, number), part, workers=2)
    with pytest.raises(DataError) as caught:
        list(batches)
    assert f"was ended by {number.name} while it read image 17, '{source.path(17)}'" in caught.value.message
    assert "pid " in caught.value.message
    assert "--workers" in caught.value.hint
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, signal.SIG_IGN, None)


def test_a_worker_killed_from_outside_ends_the_run_with_3(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path
) -> None:
    def kill_one() -> None:
        workers = multiprocessing.active_children()
        os.kill(workers[0].pid or 0, signal.SIGKILL)

    run = tmp_path / "run"
    with pytest.raises(DataError) as caught:
        pretrain(settings(labelled_folder, tokenizer_run, run, workers=2, steps=30), after(5, kill_one))
    assert "SIGKILL" in caught.value.message
    assert caught.value.exit_code == 3
    assert pretrain(settings(labelled_folder, tokenizer_run, run, steps=30, resume=True)).step == 30
