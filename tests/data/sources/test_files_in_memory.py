"""`--in-memory`: the same images and the same run, without reading a file twice; refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.sources import files_in_memory
from beitcli.data.sources.files_in_memory import FilesInMemory
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.pretrain import pretrain
from beitcli.errors import BadImage, DataError
from beitcli.runtime.compute.free_memory import free_memory
from tests.conftest import save_picture


@pytest.fixture
def folder(tmp_path: Path, labelled_folder: Path) -> Path:
    return Path(shutil.copytree(labelled_folder, tmp_path / "data"))


def test_images_are_those_of_the_files_when_these_are_gone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files_in_memory, "_CHUNK", 5000)  # a few images each
    source = open_data([str(folder)])
    before = [(source.path(n), source.label(n), source.pixels(n).tolist()) for n in range(len(source))]
    held = FilesInMemory(Subset(source, np.arange(1, 20)))
    shutil.rmtree(folder)
    assert [(held.path(n), held.label(n), held.pixels(n).tolist()) for n in range(19)] == before[1:20]
    assert [held.global_index(n) for n in (0, 18)] == [1, 19]
    assert held.classes == source.classes


def test_a_bad_image_is_bad_with_the_reason_of_the_file(folder: Path):
    (folder / "blue" / "00.jpg").write_bytes(b"no image")
    missing = folder / "blue" / "01.png"
    source = open_data([str(folder)])
    missing.unlink()
    held = FilesInMemory(source)
    for index, reason in ((0, "not an image"), (1, "no such file")):
        with pytest.raises(BadImage, match=reason):
            held.image(index)


def test_images_that_do_not_fit_are_refused_with_their_size(folder: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_data([str(folder)])
    whole = sum(source.stored_bytes(index) or 0 for index in range(len(source)))
    monkeypatch.setattr(files_in_memory, "free_memory", lambda: 2 * whole + 2)
    assert len(FilesInMemory(source)) == len(source)
    with pytest.raises(DataError, match=r"24 images of .* half of what is free"):
        FilesInMemory(source, processes=2)


class Unread(Subset):
    def read(self, index: int) -> bytes:
        raise AssertionError("it is read")


def test_shards_that_do_not_fit_are_refused_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_data([str(folder)])
    monkeypatch.setattr(files_in_memory, "free_memory", lambda: 2000)
    with pytest.raises(DataError, match=r"24 images of .* half of what is free"):
        FilesInMemory(Unread(source, np.arange(24)))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_free_memory_is_at_most_that_of_the_machine():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = free_memory()
    assert free is not None
    assert 1 << 20 < free <= 1024 * int(lines["MemTotal"].split()[0])


def test_a_run_in_memory_is_the_run_on_the_files(tmp_path: Path):
    for number in range(12):
        save_picture(tmp_path / "data" / f"{number}.jpg", (90, 10 * number, 60), number)
    losses = []
    for in_memory in (False, True):
        out = tmp_path / f"run-{in_memory}"
        flags = {"recipe": "tiny", "target": "pixels", "device": "cpu", "workers": 2, "steps": 2, "batch_size": 5,
                 "log_every": 1, "data": [str(tmp_path / "data")], "out": str(out), "in_memory": in_memory}  # fmt: skip
        pretrain(resolve(PretrainConfig, flags).config)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        losses.append([metrics["loss"] for line in lines if "loss" in (metrics := json.loads(line))])
    assert losses[0] == losses[1]
