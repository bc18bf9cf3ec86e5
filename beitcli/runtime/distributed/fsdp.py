"""A model whose weights, gradients and moments are spread over the processes (FSDP2), for what outgrows one GPU.

Every process keeps 1/n of each tensor, in fp32. A block's weights are gathered for its forward and its backward pass
alone, its gradients are averaged where they are kept, in fp32. Checkpoints hold whole tensors, as of any run: the
number of processes is free, and so is whether they shard.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from beitcli.runtime.distributed.world import DistributedContext


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], world: DistributedContext, dtype: torch.dtype = torch.float32
) -> list[nn.Module]:
    """Spreads a model's tensors over all processes, in place; before its optimizer is made.

    With bf16 the attention and the MLP of a block are rounded before they are gathered: half the bytes travel. Autocast
    would round the same weights to the same numbers after it, so neither loss nor gradient changes, save that of a
    block's own table of relative positions, which is then summed in bf16. What autocast keeps in fp32 (norms,
    LayerScale, tokens, positions) is gathered in fp32 with the rest of the model, and the input of a block, the
    residual stream, is not rounded.

    Args:
        blocks: What is gathered by itself, which calls `attn` and `mlp` once each; the rest of the model is gathered
            as one.
        dtype: Of the matrices in autocast.

    Returns:
        The modules that are computed between two collectives, in order.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # returns a view: no block adds to it in place
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


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; of one that is spread out, all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What this process keeps of a whole tensor, spread as `kept` is."""
    if not isinstance(kept, DTensor):
        return tensor
    return distribute_tensor(tensor.to(kept.device), kept.device_mesh, kept.placements, src_data_rank=None)


def whole_tensors(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole copies in the CPU's memory, one gathered after the other; none where not to `keep` them."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            found[name] = gathered.clone() if gathered.device.type == "cpu" else gathered.cpu()
    return found


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All of a sharded model in every process meanwhile, so that each may compute as often as it likes."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
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
    """Backward passes meanwhile keep their gradients to themselves."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
