"""Finds the largest micro-batch that fits in device memory, by trial."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from beitcli.runtime.compute.device import Compute

if TYPE_CHECKING:
    from beitcli.engine.trainer.plan import Plan
    from beitcli.engine.trainer.task import Task, Tensors


def find_micro_batch_size(task: Task, plan: Plan, tensors: Tensors, compute: Compute) -> Plan:
    """Returns the plan with the largest micro-batch size, halved from the batch size on, that fits in device memory.

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
    while micro > 1:
        try:
            copies = 2 if micro == whole else 3  # a second micro-batch adds to the gradients of the first
            moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(copies)]
            with task.trial(), task.eager(), task.no_sync(), compute.autocast():
                loss, _ = task.loss({name: tensor[:micro] for name, tensor in tensors.items()})
                loss.backward()
            break
        except torch.OutOfMemoryError:
            micro = -(-micro // 2)
        finally:
            moments = loss = None  # type: ignore[assignment] # noqa: F841 - frees them before the next trial
            if compute.device.type == "cuda":
                torch.cuda.empty_cache()
    return replace(plan, micro_batch=micro)
