"""Metrics averaged over the steps between two lines of the log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.checkpointing import TrainState
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task, Tensors
from beitcli.runtime.distributed.world import DistributedContext


@dataclass
class Interval:
    """Metrics since the last logged step.

    Attributes:
        step: The last logged step.
        since: Start, from `time.perf_counter`.
        sums: Sums of the metrics over steps, this rank's share.
        bad: Images that this rank could not read.
        waited: Seconds that this rank waited for its batches.
    """

    step: int
    since: float = field(default_factory=time.perf_counter)
    sums: Tensors = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    waited: float = 0.0

    def begin(self) -> None:
        """Starts the clock anew, where what came before was no training."""
        self.since, self.waited = time.perf_counter(), 0.0

    def metrics(self, task: Task, plan: Plan, state: TrainState, world: DistributedContext) -> dict[str, float]:
        """Returns means over the steps that were not skipped (none if all were) and the speed, in one device transfer.

        `data_wait_share` is the share of the time that training waited for data, the mean over ranks. Adds the elapsed
        seconds to the state. All ranks must call this.
        """
        steps, names = state.step - self.step, list(self.sums)
        sums = [self.sums[name].reshape(()).float() for name in names]
        sums.append(torch.full_like(sums[0], self.waited / max(time.perf_counter() - self.since, 1e-9)))
        *values, waited = world.all_reduce_sum(torch.stack(sums)).tolist()
        totals = dict(zip(names, values, strict=True))
        skipped = round(totals.pop("skipped_steps"))
        finite = steps - skipped
        metrics = {name: total / finite for name, total in totals.items()} if finite else {}
        taken = time.perf_counter() - self.since
        state.seconds += taken
        state.images_per_second = steps * plan.batch_size / max(taken, 1e-9)
        metrics |= {"lr": task.learning_rate(state.step - 1), "images_per_second": state.images_per_second}
        metrics["data_wait_share"] = min(1.0, waited / world.size)
        return metrics | ({"skipped_steps": skipped} if skipped else {})
