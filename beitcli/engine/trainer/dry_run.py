"""`--dry-run`: shows the plan and times a few steps; nothing is saved."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from beitcli.data.loading.batches import Batch
from beitcli.engine.events import Planned, Progress
from beitcli.engine.trainer.busy_machine import busy_text, load_average
from beitcli.engine.trainer.compile_ahead import compile_ahead
from beitcli.engine.trainer.job import Job
from beitcli.engine.trainer.micro_batch import find_micro_batch_size, no_room
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.prefetch import on_device
from beitcli.engine.trainer.setup import micro_batch_row
from beitcli.engine.trainer.task import Task
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.optimizer import set_learning_rate
from beitcli.runtime.compute.peak_flops import measure_matmul_flops
from beitcli.runtime.metric_text import counted

_TIMED_STEPS = 4  # at most
_TIMED_SECONDS = 10.0  # after which no further step is timed


def dry_run(job: Job[Any]) -> dict[str, Any]:
    """Emits the plan, times a few micro-batches including data loading, and estimates the duration of the run.

    The weight updates of these micro-batches are discarded.

    Returns:
        The document of `--dry-run`.
    """
    task, plan, compute, before = job.task, job.plan, job.compute, job.seconds_before
    busy = busy_text(load_average(), os.cpu_count() or 1)
    job.on_event(Planned(f"{task.name} (dry run)", job.planned))
    rows: dict[str, str] = {}
    with task.running():
        if plan.finds_micro_batch and compute.device.type == "cuda":
            plan = tried(task, plan, lambda size, steps: job.stream.start(0, steps, size), compute)
            rows = {"micro-batch": micro_batch_row(plan)}
        timed = _step_seconds(job, plan)
    seconds = statistics.median(timed)
    training = seconds * plan.steps
    rows |= {
        "step time": f"{seconds:.3f} s ({min(timed):.3f} to {max(timed):.3f} in {counted(len(timed), 'step')})",
        "images per second": f"{plan.batch_size / seconds:.0f}",
    }
    if job.flops:
        rows["utilisation"] = _utilisation(compute, job.flops * plan.batch_size / seconds)
    if busy:
        rows["machine"] = busy
    if before:
        rows["tokenizer first"] = f"about {duration(before)}"
    rows["training"] = f"about {duration(training)}"
    if before:
        rows["whole run"] = f"about {duration(before + training)}"
    job.on_event(Planned(f"{task.name}: times measured here", rows))
    return {
        "dry_run": True,
        "job": job.config.command,
        "plan": job.planned | rows,
        "steps": plan.steps,
        "step_seconds": seconds,
        "estimated_seconds": before + training,
        **job.document,
    }


def _step_seconds(job: Job[Any], plan: Plan) -> list[float]:
    """Returns seconds per step, extrapolated from steps of one micro-batch; a warm-up step comes before them.

    Slow steps are fewer: none begins after `_TIMED_SECONDS`, the first aside.
    """
    task, compute = job.task, job.compute
    micro = replace(plan, batch_size=min(plan.micro_batch * compute.world.size, plan.batch_size))
    task.plan = micro  # what a task does to a whole batch, such as mixing, takes the size of the batches here
    taken = []
    batches = on_device(job.stream.start(0, _TIMED_STEPS + 1, micro.batch_size), compute.device)
    task.model.train()
    for step in range(_TIMED_STEPS + 1):
        start = time.perf_counter()
        set_learning_rate(task.optimizer, task.learning_rate(step))
        tensors = task.before_step(step, next(batches)[1])
        try:
            if step == 0:
                compile_ahead(task, micro, tensors, compute, job.on_event)
            optimizer_step(task, micro, tensors, compute, compute.scaler(), {})
        except torch.OutOfMemoryError:
            raise no_room(task, plan, compute.world) from None
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
        is_long = sum(taken[1:]) >= _TIMED_SECONDS and step > 0
        is_last = bool(compute.world.all_reduce_max(is_long)) or step == _TIMED_STEPS
        job.on_event(Progress("dry run", step + 1, step + 1 if is_last else _TIMED_STEPS + 1))
        if is_last:
            break
    batches.close()
    return [seconds * plan.batch_size / micro.batch_size for seconds in taken[1:]]


def _utilisation(compute: Compute, reached: float) -> str:
    """Returns `reached` FLOP/s, of all ranks together, as a share of the measured peak."""
    rate = measure_matmul_flops(compute.training) * compute.world.size
    return (
        f"{reached / rate:.0%}: {reached / 1e12:.3g} of the {rate / 1e12:.3g} TFLOP/s "
        f"that large {compute.training.precision} products reach here"
    )


def tried(task: Task, plan: Plan, batches_of: Callable[[int, int], Iterator[Batch]], compute: Compute) -> Plan:
    """Returns the plan with the micro-batch size that a run would find; reads one batch for it.

    Args:
        batches_of: Maps (batch size, steps) to batches.
    """
    task.model.train()
    tensors = next(batches_of(plan.batch_size, 1)).to(compute.device)
    return find_micro_batch_size(task, plan, task.before_step(0, tensors), compute)


def duration(seconds: float) -> str:
    """Formats a duration in its natural unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return counted(round(seconds), "second")
