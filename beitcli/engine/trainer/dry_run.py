"""What `--dry-run` tells: a few steps are tried and timed, nothing is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from beitcli.config.common import Training
from beitcli.data.loading.batches import Batch
from beitcli.engine.events import OnEvent, Planned, Progress
from beitcli.engine.trainer.compile_ahead import compile_ahead
from beitcli.engine.trainer.micro_batch import find_micro_batch_size
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.prefetch import on_device
from beitcli.engine.trainer.setup import _micro_batches
from beitcli.engine.trainer.task import Task
from beitcli.errors import UsageError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.optimizer import set_learning_rate
from beitcli.runtime.compute.peak_flops import matrix_rate

_REHEARSAL_STEPS = 4


def rehearse(
    task: Task,
    plan: Plan,
    config: Training,
    rows: dict[str, str],
    batches_of: Callable[[int, int], Iterator[Batch]],
    compute: Compute,
    on_event: OnEvent,
    before: float = 0.0,
    flops: float = 0.0,
) -> dict[str, Any]:
    """Tells the plan, times a few micro-batches, loading included, and tells what the run will take.

    What the micro-batches learn is lost.

    Args:
        batches_of: (size, steps) to batches.
        before: Seconds that the `own` tokenizer takes first.
        flops: Of an image, forward and backward; 0 where they are not known.

    Returns:
        The document of `--dry-run`.
    """
    on_event(Planned(f"{task.name} (dry run)", rows))
    found: dict[str, str] = {}
    if plan.finds_micro_batch and compute.device.type == "cuda":
        plan = tried(task, plan, batches_of, compute)
        found = {"micro-batch": _micro_batches(plan)}
    micro = replace(plan, batch_size=min(plan.micro_batch * compute.world.size, plan.batch_size))
    taken = []
    batches = on_device(batches_of(micro.batch_size, _REHEARSAL_STEPS + 1), compute.device)
    task.model.train()
    for step in range(_REHEARSAL_STEPS + 1):
        start = time.perf_counter()
        set_learning_rate(task.optimizer, task.learning_rate(step))
        tensors = task.before_step(step, next(batches)[1])
        try:
            if step == 0:
                compile_ahead(task, micro, tensors, compute, on_event)
            optimizer_step(task, micro, tensors, compute, compute.scaler(), {})
        except torch.OutOfMemoryError:
            raise UsageError(
                f"The device has not enough memory for {micro.batch_size} images at once.",
                f"Give --micro-batch {max(1, micro.batch_size // 2)}; a run finds one that fits by itself.",
            ) from None
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * plan.batch_size / micro.batch_size)
        on_event(Progress("rehearsal", step + 1, _REHEARSAL_STEPS + 1))
    batches.close()
    seconds = statistics.median(taken[1:])  # the first one warms up
    training = seconds * plan.steps
    times = found | {
        "step time": f"{seconds:.3f} s ({min(taken[1:]):.3f} to {max(taken[1:]):.3f} in {_REHEARSAL_STEPS})",
        "images per second": f"{plan.batch_size / seconds:.0f}",
    }
    if flops:
        rate, reached = matrix_rate(compute) * compute.world.size, flops * plan.batch_size / seconds
        times["utilisation"] = (
            f"{reached / rate:.0%}: {reached / 1e12:.3g} of the {rate / 1e12:.3g} TFLOP/s "
            f"that large {compute.precision} products reach here"
        )
    if before:
        times["tokenizer first"] = f"about {duration(before)}"
    times["training"] = f"about {duration(training)}"
    if before:
        times["whole run"] = f"about {duration(before + training)}"
    on_event(Planned(f"{task.name}: times measured here", times))
    return {
        "dry_run": True,
        "job": config.command,
        "plan": rows | times,
        "steps": plan.steps,
        "step_seconds": seconds,
        "estimated_seconds": before + training,
    }


def tried(task: Task, plan: Plan, batches_of: Callable[[int, int], Iterator[Batch]], compute: Compute) -> Plan:
    """The plan with the micro-batch that a run would find; what a batch is made of is read for it."""
    task.model.train()
    tensors = next(batches_of(plan.batch_size, 1)).to(compute.device)
    return find_micro_batch_size(task, plan, task.before_step(0, tensors), compute)


def duration(seconds: float) -> str:
    """In the unit a person would take."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
