"""When held-out images are measured during a training, and that their batches are loaded once."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beitcli.cli.app import main
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.loading.kept_batches import KeptBatches
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.report.record import read_record
from beitcli.engine.report.run_state import read_run
from beitcli.engine.trainer.measuring import describe_measuring, measured_saves
from beitcli.engine.trainer.plan import Plan
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from tests.helpers.forked import Ended, forked

PLAN = Plan(
    seed=0, images=1000, steps=100, batch_size=10, micro_batch=10, warmup_steps=0, clip=None, save_every=10,
    log_every=10, keep=1, max_bad=0, data_fingerprint="", measure_share=0.1,
)  # fmt: skip


@pytest.mark.parametrize("cost", [0.0, 1.0, 7.5, 10.0, 25.0, 60.0, 100.0, 1e6])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_measuring_keeps_within_its_share_until_the_last_save(cost: float, share: float) -> None:
    plan = replace(PLAN, measure_share=share)
    due = sorted(measured_saves(plan, cost))
    assert due[-1] == 100
    if share == 1:
        assert due == list(range(10, 101, 10))
        return
    assert all(step % 10 == 0 for step in due)
    for number, step in enumerate(due[:-1], 1):
        assert number * cost <= share * step * plan.batch_size + 1e-9
    skipped = [step for step in range(10, 100, 10) if step not in due]
    for step in skipped:  # and none is left out for nothing
        assert (sum(each < step for each in due) + 1) * cost > share * step * plan.batch_size


def test_a_save_interval_that_does_not_divide_the_run() -> None:
    assert sorted(measured_saves(replace(PLAN, save_every=30), 1.0)) == [30, 60, 90, 100]
    assert measured_saves(replace(PLAN, save_every=500), 1.0) == {100}


def test_the_plan_says_where_it_measures() -> None:
    assert describe_measuring(PLAN, 1.0) == "at every save"
    assert describe_measuring(PLAN, 25.0) == "at 4 of 10 saves (--measure-share 0.1)"
    assert describe_measuring(PLAN, 1e6) == "at the last save only (--measure-share 0.1)"


def _loads(folder: Path) -> tuple[KeptBatches, list[int], object]:
    source, kept, loads = open_data([str(folder)], Request()), KeptBatches(), []

    def batches(size: int) -> list[Batch]:
        def load():
            loads.append(size)
            return ordered_batches(source, CenterTransform(size=16), batch_size=size, workers=0)

        return list(kept.batches(size, -(-len(source) // size), load))

    return kept, loads, batches


def test_a_second_pass_yields_the_same_batches_without_loading(labelled_folder: Path) -> None:
    _, loads, batches = _loads(labelled_folder)
    first, second = batches(5), batches(5)
    assert loads == [5]
    assert [each.indices for each in first] == [each.indices for each in second]
    assert all(torch.equal(a.tensors["images"], b.tensors["images"]) for a, b in zip(first, second, strict=True))
    batches(3)  # as where fewer images fit on the device
    batches(3)
    assert loads == [5, 3]


def test_a_pass_beyond_the_limit_or_broken_off_is_not_kept(labelled_folder: Path) -> None:
    kept, loads, batches = _loads(labelled_folder)
    kept.most = 3 * 16 * 16 * 6
    batches(5)
    batches(5)
    assert loads == [5, 5]
    source = open_data([str(labelled_folder)], Request())
    whole = KeptBatches()

    def load():
        return ordered_batches(source, CenterTransform(size=16), batch_size=2, workers=0)

    next(whole.batches("k", 3, load))
    assert len(list(whole.batches("k", -(-len(source) // 2), load))) == -(-len(source) // 2)


def test_a_run_measures_less_often_with_the_same_weights(
    beit: Callable[..., Ended], tmp_path: Path, labelled_folder: Path
) -> None:
    words = ["pretrain", labelled_folder, "--recipe", "tiny", "--target", "pixels", "--steps", 6, "--save-every", 1]
    words += ["--batch-size", 4, "--workers", 0, "--device", "cpu", "--previews", 0, "--holdout", 5]
    found = {}
    for share in (0, 1):
        done = beit(*words, "--measure-share", share, "--out", tmp_path / str(share), "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["measuring_seconds"] > 0
        lines = [json.loads(line) for line in (tmp_path / str(share) / "metrics.jsonl").read_text().splitlines()]
        measured = [line["step"] for line in lines if "held_out_loss" in line]
        weights = (tmp_path / str(share) / "checkpoints" / "step-0000006" / "model.safetensors").read_bytes()
        found[share] = (measured, report["loss"], weights)
    assert found[0][0] == [6]
    assert found[1][0] == [1, 2, 3, 4, 5, 6]
    assert found[0][1:] == found[1][1:]


def test_validation_images_that_cannot_be_read_cost_no_step(
    beit: Callable[..., Ended], tmp_path: Path, labelled_folder: Path, pretrained_run: Path
) -> None:
    shutil.copytree(labelled_folder / "red", tmp_path / "val" / "red")
    for path in (tmp_path / "val" / "red").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    words = ["finetune", labelled_folder, "--val", tmp_path / "val", "--recipe", "tiny", "--init", pretrained_run]
    words += ["--steps", 4, "--batch-size", 4, "--save-every", 4, "--workers", 0, "--device", "cpu", "--quiet"]
    failed = beit(*words, "--measure-share", 0, "--out", tmp_path / "run")
    assert failed.code == 3
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == "step-0000004"
    shutil.rmtree(tmp_path / "val" / "red")
    shutil.copytree(labelled_folder / "red", tmp_path / "val" / "red")
    done = beit("finetune", "--out", tmp_path / "run", "--resume", "--json", "--quiet")
    assert done.code == 0, done.err
    assert json.loads(done.out)["images"] == 8


def _pretraining(data: Path, run: Path, measure_share: int) -> list[object]:
    words = ["pretrain", data, "--recipe", "tiny", "--target", "pixels", "--steps", 4, "--save-every", 2, "--out", run]
    return [*words, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--previews", 0,
            "--measure-share", measure_share]  # fmt: skip


def _stopped_at_its_first_measuring(words: list[object]) -> int:
    """Runs the command line in this process; a signal comes while it measures."""
    measure = PretrainTask.evaluate

    def signalled(task: PretrainTask, check_stop: Callable[[], None]) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(task, check_stop)

    PretrainTask.evaluate = signalled  # type: ignore[method-assign]
    return main([str(word) for word in words])


def test_a_measuring_that_was_stopped_is_made_up_for_when_the_run_goes_on(
    beit: Callable[..., Ended], tmp_path: Path, labelled_folder: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert forked(lambda: _stopped_at_its_first_measuring(_pretraining(labelled_folder, run, 1))).code == 75
    stopped = newest_checkpoint(run)
    assert stopped is not None
    assert (stopped.trainer["step"], stopped.trainer["figures"]) == (2, None)
    for words in (["pretrain", "--out", run, "--resume"], _pretraining(labelled_folder, whole, 1)):
        done = beit(*words)
        assert done.code == 0, done.err
    found, expected = read_record(run), read_record(whole)
    assert [step for step, _ in found.measurings] == [2, 4]
    assert found.measurings == expected.measurings
    assert [row["loss"] for row in found.rows] == [row["loss"] for row in expected.rows]
    weights = [(each / "checkpoints" / "step-0000004" / "model.safetensors").read_bytes() for each in (run, whole)]
    assert weights[0] == weights[1]


def test_a_last_measuring_that_was_stopped_is_logged_and_saved_when_the_run_goes_on(
    beit: Callable[..., Ended], tmp_path: Path, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = _pretraining(labelled_folder, run, 0)

    assert forked(lambda: _stopped_at_its_first_measuring(words)).code == 75
    stopped = newest_checkpoint(run)
    assert stopped is not None
    assert (stopped.trainer["step"], stopped.trainer["figures"]) == (4, None)
    files = {name: (stopped.path / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors")}

    done = beit("pretrain", "--out", run, "--resume", "--json")
    assert done.code == 0, done.err
    loss = json.loads(done.out)["loss"]
    record, saved = read_record(run), newest_checkpoint(run)
    assert record.held_out["loss"] == read_run(run).figures["loss"] == loss
    assert record.rows[-1].keys() >= {"step", "loss", "lr", "held_out_loss"}
    assert [row["step"] for row in record.rows] == [1, 2, 3, 4]
    assert "Nothing was measured" not in (run / "report.html").read_text()
    assert saved is not None
    assert saved.trainer["figures"]["loss"] == loss
    assert {name: (saved.path / name).read_bytes() for name in files} == files

    def fail(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(PretrainTask, "evaluate", fail)
    again = beit("pretrain", "--out", run, "--resume", "--json")
    assert (again.code, json.loads(again.out)["loss"]) == (0, loss)


def test_the_table_of_runs_has_the_newest_held_out_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('command = "finetune"\n')
    rows = [{"step": 1, "loss": 3.0, "held_out_top1": 0.7}, {"step": 2, "loss": 1.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    assert (run.step, run.figures) == (2, {"top1": 0.7})
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[1]) + "\n" + '{"step": 3, "lo')
    assert read_run(tmp_path).figures == {"loss": 1.5}
