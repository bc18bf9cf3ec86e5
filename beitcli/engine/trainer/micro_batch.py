"""How many images fit on the device at once, found by trying."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from beitcli.runtime.compute.device import Compute

if TYPE_CHECKING:
    from beitcli.engine.trainer.plan import Plan
    from beitcli.engine.trainer.task import Task, Tensors


def find_micro_batch_size(task: Task, plan: Plan, tensors: Tensors, compute: Compute) -> Plan:
    """The plan with the largest micro-batch, halved from the batch on, whose forward and backward pass has room.

    AdamW's two moments do not exist yet before the first step, nor the gradients that a second piece adds to: as much
    memory is held meanwhile. Weights, figures and everything random stay as they were; every step seeds its own
    generators. Several processes keep the plan's: a loss may wait for all of them, and one that ran out of memory would
    not be there.

    Args:
        tensors: A whole batch on the device.
    """
    if compute.world.size > 1:
        return plan
    parameters = list(task.model.parameters())
    whole = micro = len(next(iter(tensors.values())))
    while micro > 1:
        try:
            copies = 2 if micro == whole else 3  # a second piece meets the gradients of the first
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
