"""Measures held-out images during a training: at the last save, and at those before it that cost a small share of it.

    cost    what one measuring costs, in training images (`Task.measuring_cost`)
    spent   what the measurings so far cost
    due     spent + cost <= measure_share * training images so far

It follows from the plan, not from the clock: a resumed run measures where the uninterrupted one does, but for what a
stop broke off before the last save.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from beitcli.engine.events import OnEvent
from beitcli.engine.trainer.checkpointing import TrainState
from beitcli.engine.trainer.micro_batch import in_memory
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.previews import PreviewWriter
from beitcli.engine.trainer.task import Task
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.fsdp import unsharded
from beitcli.runtime.signals import StopRequest


def measured_saves(plan: Plan, cost: float) -> frozenset[int]:
    """Returns the steps of the saves at which held-out images are measured.

    Args:
        cost: What one measuring costs, in images of a training step.
    """
    saves = range(plan.save_every, plan.steps, plan.save_every)
    if plan.measure_share >= 1:
        return frozenset((*saves, plan.steps))
    due, spent = {plan.steps}, 0.0
    for step in saves:
        if spent + cost <= plan.measure_share * step * plan.batch_size:
            due.add(step)
            spent += cost
    return frozenset(due)


def describe_measuring(plan: Plan, cost: float) -> str:
    """Returns at how many of its saves a run measures, for display."""
    saves, measured = -(-plan.steps // plan.save_every), len(measured_saves(plan, cost))
    if measured == saves:
        return "at every save"
    which = "at the last save only" if measured == 1 else f"at {measured} of {saves} saves"
    return f"{which} (--measure-share {plan.measure_share:g})"


@dataclass(frozen=True)
class Found:
    """What a save shows of the held-out images.

    Attributes:
        metrics: None if none are due, or a signal interrupted them.
        watched: Metrics to monitor only.
        picture: File of the previews; None if none are due.
    """

    metrics: dict[str, float] | None = None
    watched: dict[str, float] = field(default_factory=dict)
    picture: Path | None = None
    is_interrupted: bool = False


class _StopRequested(Exception):
    """An evaluation was interrupted by a stop."""


class Measuring:
    """Measures and draws the held-out images of one run."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        compute: Compute,
        stop: StopRequest,
        previews: PreviewWriter,
        on_event: OnEvent,
    ) -> None:
        self.task, self.plan, self.compute, self.stop = task, plan, compute, stop
        self.previews, self.on_event = previews, on_event
        # From rank 0: an image that decides may be readable on one machine alone.
        self.due_at = measured_saves(plan, compute.world.run_on_rank_zero(task.measuring_cost))

    def run(self, state: TrainState) -> Found:
        """Measures where it is due, and draws previews; adds the time to the state. All ranks must call this."""
        model, begun, found = self.task.model, time.perf_counter(), Found()
        model.eval()
        try:
            with unsharded(model):
                if state.step in self.due_at:
                    found = in_memory(self._measured, self.task, self.plan, self.compute)
                return Found(found.metrics, found.watched, self.previews.draw(state.step, self.on_event))
        except _StopRequested:
            return Found(is_interrupted=True)
        finally:
            model.train()
            state.measuring_seconds += time.perf_counter() - begun

    def _measured(self) -> Found:
        return Found(self.task.evaluate(self._check_stop), self.task.probe_metrics())

    def _check_stop(self) -> None:
        if self.compute.world.all_reduce_max(self.stop.received or 0):
            raise _StopRequested
