"""Whether all ranks have the same weights, bit for bit, by a checksum of each."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from beitcli.runtime.distributed.world import DistributedContext


def differing_ranks(world: DistributedContext, tensors: Iterable[torch.Tensor]) -> list[int]:
    """Returns the ranks whose tensors differ bitwise from those of the majority; empty if all are equal.

    Each rank sums the bits of its tensors as integers, at memory bandwidth; only the sums are compared.
    """
    sums = world.gather(bits(tensors)) if world.size > 1 else []
    if len(set(sums)) <= 1:
        return []
    usual = max(sums, key=lambda value: (sums.count(value), value == sums[0]))
    return [rank for rank, value in enumerate(sums) if value != usual]


@torch.no_grad()
def bits(tensors: Iterable[torch.Tensor]) -> int:
    """Returns a checksum of fp32 tensors: the weighted sum of their words, modulo 2^64. Any flipped bit changes it."""
    sums = [tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    weights = torch.arange(1, 2 * len(sums), 2, device=sums[0].device)  # odd, so that equal changes do not cancel
    return int((torch.stack(sums) * weights).sum())
