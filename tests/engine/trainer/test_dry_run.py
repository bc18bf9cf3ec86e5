"""A dry run times steps of one micro-batch; what a task does to a whole batch takes that size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import beitcli
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.events import Event, Planned, Progress
from beitcli.engine.train_tokenizer import train_tokenizer
from beitcli.engine.trainer import dry_run
from beitcli.engine.trainer.busy_machine import busy_text

TINY = {"limit": 16, "steps": 2, "workers": 0, "device": "cpu", "progress": False, "dry_run": True}


@pytest.mark.parametrize("group", [0, 4, 128])
def test_finetuning_mixes_the_images_that_are_there(group: int) -> None:
    plan = beitcli.finetune(
        "sample",
        init="random",
        recipe="tiny",
        size=32,
        batch_size=16,
        micro_batch=4,
        mixup=0.8,
        mixup_group=group,
        **TINY,
    )
    assert isinstance(plan, dict)
    assert plan["steps"] == 2
    assert "16 images" in plan["plan"]["steps"]


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_tokenizers_place_the_images_that_are_there(kind: str) -> None:
    plan = beitcli.train_tokenizer(
        "sample", recipe="tiny", kind=kind, vocab_size=16, size=16, width=8, batch_size=8, micro_batch=2, **TINY
    )
    assert isinstance(plan, dict)
    assert plan["estimated_seconds"] > 0


@pytest.mark.parametrize(("seconds", "steps"), [(1e9, "4 steps"), (0.0, "1 step")])
def test_slow_steps_are_timed_less_often(monkeypatch: pytest.MonkeyPatch, seconds: float, steps: str) -> None:
    monkeypatch.setattr(dry_run, "_TIMED_SECONDS", seconds)
    plan = beitcli.train_tokenizer("sample", recipe="tiny", vocab_size=16, size=16, width=8, batch_size=4, **TINY)
    assert isinstance(plan, dict)
    assert plan["plan"]["step time"].endswith(f" in {steps})")


def test_a_busy_machine_is_told_with_its_load() -> None:
    assert busy_text(1.9, 2) == busy_text(2.0, 2) == ""
    assert busy_text(5.34, 2).startswith("busy with other work: load average 5.3 on 2 cores")
    assert busy_text(1.5, 1).endswith("on 1 core; alone, steps take less time")


def test_a_training_and_its_dry_run_say_alike_that_the_machine_is_busy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = {name: value for name, value in TINY.items() if name not in ("progress", "dry_run")}
    flags |= {"data": ("sample",), "recipe": "tiny", "vocab_size": 16, "size": 16, "width": 8, "batch_size": 4}
    for load in (0.0, 1e6):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        events: list[Event] = []
        words = flags | {"steps": 1, "device": "cpu", "out": str(tmp_path / f"{load}")}
        train_tokenizer(resolve(TrainTokenizerConfig, words).config, events.append)
        (rows,) = [event.rows for event in events if isinstance(event, Planned)]
        said = rows.get("machine", "")
        assert bool(said) == (load > 0)
        assert not load or said.startswith("busy with other work: load average 1000000.0 on ")
        dry = train_tokenizer(
            resolve(TrainTokenizerConfig, words | {"dry_run": True, "out": str(tmp_path / "dry")}).config
        )
        assert isinstance(dry, dict)
        assert dry["plan"].get("machine", "") == said


def test_the_load_is_compared_with_all_cores_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, said in ((3.5, ""), (8.0, "load average 8.0 on 4 cores")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        plan = beitcli.train_tokenizer("sample", recipe="tiny", vocab_size=16, size=16, width=8, batch_size=4, **TINY)
        assert isinstance(plan, dict)
        assert said in plan["plan"].get("machine", "")
        assert bool(said) == ("machine" in plan["plan"])


@pytest.mark.parametrize("load", [0.0, 1e6])
def test_the_estimate_stands_beside_the_load(monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    plan = beitcli.train_tokenizer("sample", recipe="tiny", vocab_size=16, size=16, width=8, batch_size=4, **TINY)
    assert isinstance(plan, dict)
    assert ("machine" in plan["plan"]) == (load > 0)


def test_the_timed_steps_are_called_dry_run() -> None:
    events: list[Event] = []
    flags = {name: value for name, value in TINY.items() if name != "progress"}
    flags |= {"data": ("sample",), "recipe": "tiny", "vocab_size": 16, "size": 16, "width": 8, "batch_size": 4}
    train_tokenizer(resolve(TrainTokenizerConfig, flags).config, events.append)
    assert {event.phase for event in events if isinstance(event, Progress)} == {"dry run"}
