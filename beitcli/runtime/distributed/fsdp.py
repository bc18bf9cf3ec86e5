"""FSDP2: shards weights, gradients and optimizer state over the ranks, for models that do not fit one GPU.

Each rank keeps 1/n of every tensor, in fp32. The weights of a block are all-gathered only for its forward and its
backward pass; gradients are reduce-scattered, and averaged in fp32. Checkpoints hold full tensors, as those of any run:
a run can be resumed with any world size, sharded or not.

torch's FSDP is imported by `shard` alone, as it brings sympy: a quarter of a training's start.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

from beitcli.runtime.distributed.world import DistributedContext


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], world: DistributedContext, dtype: torch.dtype = torch.float32
) -> list[nn.Module]:
    """Shards a model's tensors over all ranks, in place; call it before building the optimizer.

    With bf16 the attention and the MLP of a block are cast before the all-gather, which halves its bytes. Autocast
    would cast the same weights to the same values afterwards, so neither loss nor gradients change, except those of a
    block's own relative position bias table, which are then summed in bf16. What autocast keeps in fp32 (norms,
    LayerScale, tokens, positional encodings) is gathered in fp32 with the rest of the model, and the input of a block,
    the residual stream, is not cast.

    Args:
        blocks: Modules to shard separately, which call `attn` and `mlp` once each; the rest of the model is one unit.
        dtype: Of matrices under autocast.

    Returns:
        The modules that are computed between two collectives, in order.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # about views: blocks modify none in place
    rounded = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    units: list[nn.Module] = []
    for block in blocks:
        if dtype == torch.bfloat16:
            fully_shard([block.attn, block.mlp], mesh=mesh, mp_policy=rounded)  # type: ignore[list-item]
            units += [block.attn, block.mlp]  # type: ignore[list-item]
        else:
            fully_shard(block, mesh=mesh)
            units.append(block)
    fully_shard(model, mesh=mesh)
    return units


def is_sharded(module: nn.Module) -> bool:
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _is_part(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the full tensor; all ranks must call this for a sharded one."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def distribute_like(tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Returns this rank's part of a full tensor, sharded like `kept`."""
    if not _is_part(kept):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(kept.device), kept.device_mesh, kept.placements, src_data_rank=None)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Context with the full parameters on every rank, so that ranks may run different numbers of forward passes."""
    parts = [cast("FSDPModule", module) for module in model.modules() if is_sharded(module)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


@contextmanager
def defer_reduction(model: nn.Module) -> Iterator[None]:
    """Context in which backward passes accumulate gradients without reducing them."""
    if not is_sharded(model):
        yield
        return
    sharded = cast("FSDPModule", model)
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)
