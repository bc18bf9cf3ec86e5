"""The micro-batch that is found by trying, and the one that a run keeps."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.loading.batches import Batch
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.pretrain import pretrain
from beitcli.engine.segmentation.task import SegmentationTask
from beitcli.engine.trainer.dry_run import tried
from beitcli.engine.trainer.micro_batch import find_micro_batch_size, in_memory, no_room
from beitcli.engine.trainer.optimizer_step import min_micro_batch
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.errors import UsageError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

CPU = Compute(torch.device("cpu"), "fp32")


class Narrow(Task):
    """A real model whose device holds `room` images; it counts the images it has seen."""

    name = kind = "narrow"

    def __init__(self, room: int) -> None:
        self.room, self.model = room, nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.seen = torch.zeros(())

    def loss(self, batch):
        self.seen += len(batch["images"])
        if len(batch["images"]) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.model(batch["images"]).square().mean(), {}

    def learning_rate(self, step):
        return 1e-3

    def evaluate(self, check_stop):
        return {}

    def checkpoint_config(self):
        return {}

    @contextmanager
    def trial(self):
        before = self.seen.clone()
        try:
            with super().trial():
                yield
        finally:
            self.seen = before


def plan(batch: int) -> Plan:
    return Plan(
        seed=0, images=100, steps=3, batch_size=batch, micro_batch=batch, warmup_steps=0, clip=None, save_every=1,
        log_every=1, keep=1, max_bad=0, data_fingerprint="", finds_micro_batch=True,
    )  # fmt: skip


def test_a_dry_run_tries_a_whole_batch():
    task, asked = Narrow(7), []

    def batches_of(size: int, steps: int):
        asked.append((size, steps))
        yield from (Batch({"images": torch.randn(size, 3)}, list(range(size)), []) for _ in range(steps))

    task.model.eval()
    assert tried(task, plan(16), batches_of, CPU).micro_batch == 4
    assert asked == [(16, 1)]
    assert task.model.training


@pytest.mark.parametrize(("batch", "room", "found"), [(16, 100, 16), (16, 16, 16), (16, 7, 4), (10, 3, 3), (8, 0, 1)])
def test_the_largest_half_that_has_room_is_found_and_nothing_else_changes(batch, room, found):
    task = Narrow(room)
    weights = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    assert find_micro_batch_size(task, plan(batch), {"images": torch.randn(batch, 3)}, CPU).micro_batch == found
    assert int(task.seen) == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert not task.optimizer.state


class Paired(Narrow):
    """One whose batch norm has no variance of a single image."""

    least_micro_batch = 2


@pytest.mark.parametrize(
    ("batch", "room", "found"),
    [(16, 1, 2), (8, 0, 2), (10, 3, 3), (7, 3, 3), (7, 2, 3), (3, 2, 3), (5, 1, 3), (2, 1, 2), (9, 100, 9)],
)
def test_no_forward_pass_gets_fewer_images_than_the_task_needs(batch, room, found):
    asked = plan(batch)
    chosen = find_micro_batch_size(Paired(room), asked, {"images": torch.randn(batch, 3)}, CPU)
    assert chosen.micro_batch == found
    assert min_micro_batch(chosen, CPU.world) >= 2


@pytest.mark.parametrize(
    ("kind", "batch", "micro", "way_out"),
    [
        (Narrow, 16, 16, "Give --micro-batch 8;"),
        (Narrow, 16, 1, "smaller images"),
        (Paired, 16, 2, "smaller images"),
        (Paired, 7, 4, "Give --micro-batch 3;"),
        (Paired, 3, 3, "smaller images"),
    ],
)
def test_a_step_without_room_names_a_micro_batch_that_works(kind, batch, micro, way_out):
    error = no_room(kind(0), replace(plan(batch), micro_batch=micro), CPU.world)
    assert f"memory for {micro} image{'s' if micro > 1 else ''} at once" in error.message
    assert way_out in error.hint


@pytest.mark.parametrize(("known", "room", "tried"), [(None, 9, [128, 64, 32, 16, 8]), (6, 1, [6, 3, 1]), (4, 4, [4])])
def test_an_evaluation_without_room_is_repeated_with_half_the_images(known, room, tried):
    task, sizes = Narrow(room), []
    task.fits = known

    def measure() -> int:
        sizes.append(task.at_once(128))
        return int(task.loss({"images": torch.randn(sizes[-1], 3)})[0].isfinite())

    assert in_memory(measure, task, plan(16), CPU) == 1
    assert sizes == tried
    assert task.at_once(2) == min(2, tried[-1])  # what evaluations to come compute at once


def test_an_evaluation_for_which_one_image_is_too_much_or_that_others_wait_in_says_what_to_do():
    def measure() -> None:
        raise torch.OutOfMemoryError("no room")

    task = Narrow(0)
    with pytest.raises(UsageError, match="memory for 1 image at once") as caught:
        in_memory(measure, task, plan(16), CPU)
    assert "smaller images" in caught.value.hint
    task.fits = 4
    several = Compute(torch.device("cpu"), "fp32", world=DistributedContext(1, 2))
    with pytest.raises(UsageError, match="memory for 4 images at once") as caught:
        in_memory(measure, task, plan(16), several)
    assert "Give --micro-batch 2;" in caught.value.hint


def narrow(compute):
    def computed(task, batch):
        if len(batch["images"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return compute(task, batch)

    return computed


def test_a_run_whose_evaluation_has_too_little_memory_ends_with_the_same_metrics(
    tmp_path, labelled_folder, tokenizer_run, monkeypatch
):
    """The device holds two images; the other run computes all of them at once."""
    flags = {
        "recipe": "tiny", "data": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "image_size": 32,
        "num_masked": 6, "device": "cpu", "workers": 0, "steps": 2, "save_every": 1, "batch_size": 8,
    }  # fmt: skip
    reports = []
    for name in ("whole", "halved"):
        if name == "halved":
            monkeypatch.setattr(PretrainTask, "forward_with_targets", narrow(PretrainTask.forward_with_targets))
        reports.append(pretrain(resolve(PretrainConfig, flags | {"out": str(tmp_path / name)}).config))
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-6)
    assert reports[1].masked_accuracy == reports[0].masked_accuracy


def test_segmentation_needs_two_images():
    assert SegmentationTask.least_micro_batch == 2


def test_several_processes_keep_the_plan_s_and_try_nothing():
    task, several = Narrow(3), Compute(torch.device("cpu"), "fp32", world=DistributedContext(1, 2))
    asked = plan(16)
    assert find_micro_batch_size(task, asked, {"images": torch.randn(8, 3)}, several) is asked
    assert int(task.seen) == 0
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_a_run_keeps_its_micro_batch_with_each_checkpoint(pretrained_run):
    newest = newest_checkpoint(pretrained_run)
    assert newest is not None
    assert newest.trainer["micro_batch"] == 8
