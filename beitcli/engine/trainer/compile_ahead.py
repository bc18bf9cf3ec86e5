"""Compiles a task's step before the first one, so that its time and its failure are reported separately."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from beitcli.engine.events import Note, OnEvent, Warned
from beitcli.engine.trainer.optimizer_step import micro_batches
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task, Tensors
from beitcli.errors import BeitError
from beitcli.runtime.compute.compile import is_out_of_memory
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.fsdp import is_sharded


def compile_ahead(task: Task, plan: Plan, tensors: Tensors, compute: Compute, on_event: OnEvent) -> None:
    """Runs one micro-batch forward and backward; weights, gradients and the task's counts stay as they were.

    The backward pass is compiled on its first call, so a failure may occur there. If one rank fails, all ranks run
    eagerly. With a sharded model, however, all ranks communicate in the backward pass: if the compiler fails on one
    rank only, the others wait until their timeout. Random generators advance: the caller seeds them for the step.

    Args:
        tensors: This rank's part of a batch, on the device.

    Raises:
        OutOfMemoryError: A micro-batch does not fit in device memory.
    """
    compiled = task.compiled
    if compiled is None or not compiled.is_compiled:
        return
    on_event(Note(f"{task.name}: compiling the step, which takes a minute or two where it was not compiled before."))
    begun = time.perf_counter()
    micro, _ = next(micro_batches(task, plan, tensors, compute.world))
    # zero_grad does not reach the unreduced gradients of FSDP2, so those of the trial are reduced.
    alone = nullcontext() if is_sharded(task.model) else task.no_sync()
    try:
        with task.trial(), alone:
            with compute.training.autocast():
                loss, _ = task.loss(micro)
            loss.backward()
    except BeitError:
        raise
    except Exception as error:  # compilers raise anything
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        task.fall_back(error)
    failed = compute.world.gather(compiled.failure)
    cause = next((failure for failure in failed if failure), "")
    if cause:
        task.fall_back(cause)
        on_event(
            Warned(
                f"{task.name}: the step is not compiled and runs eagerly, slower but right: {cause}. "
                "Install what is missing (on a CPU a C++ compiler, g++), or pass --no-compile."
            )
        )
    else:
        on_event(Note(f"{task.name}: the step is compiled, in {time.perf_counter() - begun:.0f} s."))
