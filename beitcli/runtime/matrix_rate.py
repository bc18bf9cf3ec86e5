"""How fast this machine multiplies matrices: what a step's FLOPs are held against."""

from __future__ import annotations

import statistics
import time

import torch

from beitcli.runtime.device import Compute

_ROUNDS = 7
_SIDES = {"cuda": 8192, "cpu": 1024, "mps": 2048}


def matrix_rate(compute: Compute) -> float:
    """FLOP a second of square products of random numbers in the precision of `compute`, the median of a few.

    Random, because zeros take less power and so run faster; 1.1 TFLOP each on CUDA, 2.1 GFLOP on a CPU.
    """
    device, side = compute.device, _SIDES.get(compute.device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)
    shape = (side, side)
    first, second = (torch.randn(shape, device=device, generator=generator).to(compute.dtype) for _ in range(2))
    taken = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        product = first @ second
        if device.type == "cpu":
            taken.append(time.perf_counter() - start)
        else:
            product[0, 0].item()  # waits
            taken.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(taken[1:])
