"""One optimizer step of a batch that is distributed over ranks: forward, backward, clip, update.

    loss = sum over micro-batches of (their share of the whole batch) * (their mean loss)
    gradient = its gradient, summed over ranks                  (DDP averages, hence the factor world size)

A step with a non-finite gradient changes nothing, not even the running statistics of batch norm. This holds on
all ranks alike, as all have the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from beitcli.data.loading.sampler import rank_indices
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task, Tensors
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.distributed.fsdp import full_tensor
from beitcli.runtime.distributed.world import DistributedContext


def sample_step_uniforms(plan: Plan, columns: int, step: int, world: DistributedContext) -> torch.Tensor:
    """Draws (b, columns) uniform numbers in [0, 1) for this rank's images, whatever the world and micro-batch size."""
    generator = torch.Generator().manual_seed(keyed_integer(plan.seed, "drop path", 0, step))
    whole = torch.rand(plan.batch_size, columns, generator=generator)
    return whole[torch.from_numpy(rank_indices(plan.batch_size, world.rank, world.size))]


def num_micro_batches(plan: Plan, world: DistributedContext) -> int:
    """Returns the number of micro-batches per step, equal on all ranks: each may contain collectives."""
    parts = [len(rank_indices(plan.batch_size, rank, world.size)) for rank in range(world.size)]
    return min(-(-max(parts) // plan.micro_batch), min(parts))


def max_micro_batch(plan: Plan, world: DistributedContext) -> int:
    """Returns the number of images in the largest forward pass that a rank does in a step."""
    parts = [len(rank_indices(plan.batch_size, rank, world.size)) for rank in range(world.size)]
    return -(-max(parts) // num_micro_batches(plan, world))


def min_micro_batch(plan: Plan, world: DistributedContext) -> int:
    """Returns the number of images in the smallest forward pass of a step, summed over ranks."""
    number = num_micro_batches(plan, world)
    parts = [len(rank_indices(plan.batch_size, rank, world.size)) for rank in range(world.size)]
    cuts = [[part * piece // number for part in parts] for piece in range(number + 1)]
    return min(sum(after) - sum(before) for before, after in pairwise(cuts))


def optimizer_step(
    task: Task, plan: Plan, tensors: Tensors, compute: Compute, scaler: Any, sums: Tensors
) -> torch.Tensor:
    """Runs forward and backward passes by micro-batches, clips gradients, and runs one optimizer step.

    Args:
        tensors: This rank's part of the batch.
        sums: Metrics of finite steps are added to it, as this rank's share, and `skipped_steps`.

    Returns:
        Whether the step was skipped: a scalar on the device, equal on all ranks.
    """
    world = compute.world
    statistics = [(buffer, buffer.clone()) for buffer in _statistics(task.model)]
    task.optimizer.zero_grad(set_to_none=True)
    metrics = _backward(task, plan, tensors, compute, scaler)
    scaler.unscale_(task.optimizer)
    parameters = list(task.model.parameters())
    norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if plan.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, plan.clip, norm)
    skipped = ~norm.detach().isfinite()
    for name, value in (*metrics.items(), ("gradient_norm", norm.detach() / world.size)):
        sums[name] = sums.get(name, 0) + torch.where(skipped, torch.zeros_like(value), value)
    sums["skipped_steps"] = sums.get("skipped_steps", 0) + skipped.float() / world.size
    for buffer, before in statistics:  # one infinity would stay in a moving average for good
        buffer.copy_(torch.where(skipped, before, buffer))
    _update(task.optimizer, scaler, skipped, on_device=compute.device.type == "cuda")
    return skipped


def _statistics(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yields the buffers that a forward pass in training mode moves."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.buffers()


def _backward(task: Task, plan: Plan, tensors: Tensors, compute: Compute, scaler: Any) -> Tensors:
    """Accumulates the gradients of this rank's part; returns its metrics, weighted by share of the whole batch."""
    world = compute.world
    metrics: Tensors = {}
    number = len(_cuts(plan, len(next(iter(tensors.values()))), world))
    for place, (micro, share) in enumerate(micro_batches(task, plan, tensors, world), start=1):
        with task.no_sync() if place < number else nullcontext():
            with compute.training.autocast():
                loss, more = task.loss(micro)
            scaler.scale(loss * (share * world.size)).backward()
        for name, value in (("loss", loss.detach()), *more.items()):
            metrics[name] = metrics.get(name, 0) + value.float() * share
    return metrics


def micro_batches(
    task: Task, plan: Plan, tensors: Tensors, world: DistributedContext
) -> Iterator[tuple[Tensors, float]]:
    """Yields the micro-batches of this rank's part of a batch, each with its share of the whole batch.

    A compiled step has static shapes: if the lengths differ by an image, the shorter micro-batches are padded with
    their last image, and all get `valid` (B,) bool, False for padding.
    """
    here = len(next(iter(tensors.values())))
    whole = plan.batch_size if world.size > 1 else here
    cuts = _cuts(plan, here, world)
    compiled = task.compiled is not None and task.compiled.is_compiled
    fills = compiled and task.takes_padding and here % len(cuts) > 0
    for start, end in cuts:
        micro = {name: tensor[start:end] for name, tensor in tensors.items()}
        yield _filled(micro, -(-here // len(cuts))) if fills else micro, (end - start) / whole


def _cuts(plan: Plan, here: int, world: DistributedContext) -> list[tuple[int, int]]:
    """Returns (start, end) of each micro-batch in the `here` images of this rank; lengths differ by at most one."""
    number = num_micro_batches(plan, world) if world.size > 1 else -(-here // plan.micro_batch)
    return list(pairwise(here * piece // number for piece in range(number + 1)))


def _filled(micro: Tensors, length: int) -> Tensors:
    """Pads to `length` rows by repeating the last one, and adds `valid`."""
    first = next(iter(micro.values()))
    rows = torch.arange(length, device=first.device)
    filled = {name: tensor.index_select(0, rows.clamp(max=len(first) - 1)) for name, tensor in micro.items()}
    return filled | {"valid": rows < len(first)}


def _update(optimizer: torch.optim.Optimizer, scaler: Any, skipped: torch.Tensor, *, on_device: bool) -> None:
    """Runs the optimizer's step unless it is skipped; if `on_device` its kernel decides, and the host does not wait."""
    if scaler.is_enabled():  # GradScaler finds the fp16 scale by overflowing, and skips such steps itself
        scaler.step(optimizer)
        scaler.update()
    elif not on_device:
        if not skipped:
            optimizer.step()
    else:
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined] # of the fused kernel, as GradScaler sets it
        optimizer.step()
