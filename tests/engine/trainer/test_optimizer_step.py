"""One optimizer step: what a step that is skipped leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.runtime.compute.device import Compute

CPU = Compute(torch.device("cpu"), "fp32")
PLAN = Plan(
    seed=0, images=100, steps=3, batch_size=4, micro_batch=2, warmup_steps=0, clip=None, save_every=1,
    log_every=1, keep=1, max_bad=0, data_fingerprint="",
)  # fmt: skip


class Normalized(Task):
    """A convolution with batch norm."""

    name = kind = "normalized"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def loss(self, batch):
        return (self.model(batch["images"]) - 1).square().mean(), {}

    def learning_rate(self, step):
        return 1e-3

    def evaluate(self, check_stop):
        return {}

    def checkpoint_config(self):
        return {}


def state(task: Normalized) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in task.model.state_dict().items()}


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_skipped_step_leaves_weights_and_running_statistics_alone(bad):
    task, images, sums = Normalized(), torch.randn(4, 3, 2, 2), {}
    assert not optimizer_step(task, PLAN, {"images": images}, CPU, CPU.scaler(), sums)
    before, spoiled = state(task), images.clone()
    spoiled[3, 0, 0, 0] = bad
    assert optimizer_step(task, PLAN, {"images": spoiled}, CPU, CPU.scaler(), sums)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(task).items())
    assert not optimizer_step(task, PLAN, {"images": images}, CPU, CPU.scaler(), sums)
    after = state(task)
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert float(sums["skipped_steps"]) == 1
