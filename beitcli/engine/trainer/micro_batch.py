"""Finds how many images fit in device memory at once, by trial: those of a training step and of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import torch

from beitcli.engine.trainer.optimizer_step import min_micro_batch
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task, Tensors
from beitcli.errors import MemoryShortage
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.metric_text import counted

Measured = TypeVar("Measured")
_MOST_AT_ONCE = 128  # images that any evaluation computes at once


def find_micro_batch_size(task: Task, plan: Plan, tensors: Tensors, compute: Compute) -> Plan:
    """Returns the plan with the largest micro-batch size, halved from the batch size on, that fits in device memory.

    None that leaves fewer than the task's `least_micro_batch` images for a forward pass.

    Each trial is one forward and backward pass. AdamW's two moments do not exist before the first step, nor do the
    gradients that a second micro-batch adds to: as much memory is allocated meanwhile. Weights, metrics and random
    state are unaffected, as every step seeds its own generators. In distributed training the plan is unchanged: a loss
    may contain collectives, and a rank that ran out of memory would miss them.

    Args:
        tensors: A whole batch on the device.
    """
    if compute.world.size > 1:
        return plan
    parameters = list(task.model.parameters())
    whole = micro = len(next(iter(tensors.values())))
    while (next_smaller := smaller(task, plan, micro)) is not None:
        try:
            copies = 2 if micro == whole else 3  # a second micro-batch adds to the gradients of the first
            moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(copies)]
            with task.trial(), task.eager(), task.no_sync(), compute.training.autocast():
                loss, _ = task.loss({name: tensor[:micro] for name, tensor in tensors.items()})
                loss.backward()
            break
        except torch.OutOfMemoryError:
            micro = next_smaller
        finally:
            moments = loss = None  # type: ignore[assignment] # noqa: F841 - frees them before the next trial
            if compute.device.type == "cuda":
                torch.cuda.empty_cache()
    return replace(plan, micro_batch=micro)


def smaller(task: Task, plan: Plan, micro: int, world: DistributedContext = SINGLE_PROCESS) -> int | None:
    """Returns half of a micro-batch size or little more, with which the task can compute; None if none is smaller."""
    for size in range(-(-micro // 2), micro):
        if min_micro_batch(replace(plan, micro_batch=size), world) >= task.least_micro_batch:
            return size
    return None


def no_room(task: Task, plan: Plan, world: DistributedContext) -> MemoryShortage:
    """Returns the error of a step that does not fit on the device."""
    fewer = smaller(task, plan, plan.micro_batch, world)
    return MemoryShortage(
        f"The device has not enough memory for {counted(plan.micro_batch, 'image')} at once.",
        "That is the least: give smaller images or a smaller model."
        if fewer is None
        else f"Give --micro-batch {fewer}; --batch-size stays as it is.",
    )


def in_memory(measure: Callable[[], Measured], task: Task, plan: Plan, compute: Compute) -> Measured:
    """Calls an evaluation of the task; again with half the images `at_once` as long as they do not fit on the device.

    Raises:
        MemoryShortage: A single one does not fit; or there are other ranks, which wait for this one in the evaluation.
    """
    while True:
        with suppress(torch.OutOfMemoryError):
            return measure()
        tried_at_once = task.fits or _MOST_AT_ONCE
        if tried_at_once == 1 or compute.world.size > 1:
            raise no_room(task, replace(plan, micro_batch=tried_at_once), compute.world)
        task.fits = tried_at_once // 2
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()  # of what the attempt had allocated
