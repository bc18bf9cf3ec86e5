"""The steps between two lines of the log, and the means over them."""

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
    """Since the last line of the log.

    Attributes:
        step: The one behind which it begins.
        since: Of `time.perf_counter`.
        sums: Of the metrics of its steps, this process's share.
        bad: Images that this process could not read.
    """

    step: int
    since: float = field(default_factory=time.perf_counter)
    sums: Tensors = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)

    def metrics(self, task: Task, plan: Plan, state: TrainState, world: DistributedContext) -> dict[str, float]:
        """Means over the steps that were not skipped, none where all were, and the speed; one transfer from the device.

        Adds the seconds to the state. All processes must call it.
        """
        steps, names = state.step - self.step, list(self.sums)
        values = torch.stack([self.sums[name].reshape(()).float() for name in names])
        totals = dict(zip(names, world.all_reduce_sum(values).tolist(), strict=True))
        skipped = round(totals.pop("skipped_steps"))
        finite = steps - skipped
        metrics = {name: total / finite for name, total in totals.items()} if finite else {}
        taken = time.perf_counter() - self.since
        state.seconds += taken
        state.images_per_second = steps * plan.batch_size / max(taken, 1e-9)
        metrics |= {"lr": task.learning_rate(state.step - 1), "images_per_second": state.images_per_second}
        return metrics | ({"skipped_steps": skipped} if skipped else {})
