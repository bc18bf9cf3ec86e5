"""A process group of one, NCCL where there is CUDA: does it come up, do DDP and FSDP2 compute the same step?

Eager they do so to the last digits. Compiled, the same losses by other kernels: they are compared with the eager step.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from beitcli.engine.mim.task import PretrainTask
from beitcli.runtime.compute.compile import CompiledModule
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.runtime.distributed.data_parallel import parallel
from beitcli.runtime.distributed.fsdp import full_tensor, shard
from beitcli.runtime.distributed.world import DistributedContext
from gpu_steps.context import Context, relative_error
from gpu_steps.setups import Setup, make_setup

_STEPS = 3


def run(context: Context) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # a machine without network may have no other
        os.environ.setdefault(name, "lo")
    backend = "cpu:gloo,cuda:nccl" if context.is_cuda else "cpu:gloo"
    if context.is_cuda:
        torch.cuda.set_device(0)
    start = time.perf_counter()
    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=30))
    context.record("init", {"backend": backend, "seconds": time.perf_counter() - start})
    try:
        with context.attempt("all-reduce"):
            context.record("all-reduce", all_reduce(context))
        plain: dict[str, Any] = trained(make(context))
        context.record("plain", {"losses": plain["losses"]})
        for name, wrap in (("ddp", with_ddp), ("fsdp2", with_fsdp)):
            for compiles in (False, True):
                part = f"{name}, compiled" if compiles else name
                with context.attempt(part):
                    setup = wrap(make(context, compile_model=compiles))
                    found = compared(plain, trained(setup))
                    context.record(part, found | (compile_evidence(setup.task) if compiles else {}))
    finally:
        dist.destroy_process_group()


def all_reduce(context: Context) -> dict[str, Any]:
    """A sum over one process, of a tensor on the device and of one on the CPU."""
    found = {}
    for device in {context.device.type, "cpu"}:
        tensor = torch.randn(1 << 16, device=device)
        before = tensor.clone()
        dist.all_reduce(tensor)
        found[device] = bool(torch.equal(tensor, before))
    return found


def make(context: Context, *, compile_model: bool = False) -> Setup:
    return make_setup(context, "small", 2 if context.small else 16, compile_model=compile_model)


def with_ddp(setup: Setup) -> Setup:
    """As a task wraps its model where there are several processes."""
    task = setup.task
    assert task.compiled is not None
    task.forward = task.parallel = parallel(task.compiled, DistributedContext(size=2))  # of a group of one
    return setup


def with_fsdp(setup: Setup) -> Setup:
    """As `--shard` spreads it; the optimizer is made of what is left here."""
    task = setup.task
    assert task.compiled is not None
    parts = shard(task.model, task.sharded_blocks(), DistributedContext(), setup.compute.dtype)
    task.parallel = task.model
    task.forward = task.compiled = CompiledModule(task.objective, enabled=task.compiled.is_compiled, parts=parts)
    groups = parameter_groups(task.model, task.config.weight_decay)
    task.optimizer = make_adamw(groups, task.config.lr, (0.9, task.config.beta2), setup.compute.device)
    return setup


def compile_evidence(task: PretrainTask) -> dict[str, Any]:
    """Whether the step ran compiled to its end; under DDP it is the wrapped module that knows."""
    assert task.compiled is not None
    return {"is_compiled": task.compiled.is_compiled, "failure": task.compiled.failure}


def trained(setup: Setup) -> dict[str, Any]:
    losses = [setup.loss_of_step() for _ in range(_STEPS)]
    weights = torch.cat([full_tensor(p.detach()).flatten().cpu() for p in setup.task.model.parameters()])
    return {"losses": losses, "weights": weights}


def compared(plain: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    differences = [abs(a - b) for a, b in zip(plain["losses"], other["losses"], strict=True)]
    return {
        "losses": other["losses"],
        "largest_loss_difference": max(differences),
        "weights_error": relative_error(other["weights"], plain["weights"]),
    }
