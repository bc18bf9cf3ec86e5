"""Measures the matrix-multiplication rate of this machine, for comparison with a step's FLOPs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from beitcli.runtime.compute.cpu_matmul import matmul_by
from beitcli.runtime.compute.device import Compute

_WARM_UP, _ROUNDS = 2, 7
_SIDES = {"cuda": 8192, "cpu": 1024, "mps": 2048}


def measure_matmul_flops(compute: Compute) -> float:
    """Returns FLOP/s of square matrix products in the precision of `compute`, the median of a few.

    The matrices are random, because zeros take less power and so run faster. A product has 1.1 TFLOP on CUDA, 2.1 GFLOP
    on a CPU. CUDA events time each product, so that launches and waits of the host do not count.
    """
    device, side = compute.device, _SIDES.get(compute.device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)
    shape = (side, side)
    first, second = (torch.randn(shape, device=device, generator=generator).to(compute.dtype) for _ in range(2))
    product = torch.empty_like(first)
    with torch.no_grad(), matmul_by(compute.matmul), compute.autocast():  # also sets TF32 and the library
        timed = _timed_on_cuda if device.type == "cuda" else _timed_here
        taken = timed(lambda: torch.mm(first, second, out=product), device)
    return 2 * side**3 / statistics.median(taken[_WARM_UP:])


def _timed_on_cuda(multiply: Callable[[], object], device: torch.device) -> list[float]:
    """Returns the seconds of each call, by CUDA events."""
    stream = torch.cuda.current_stream(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_WARM_UP + _ROUNDS + 1)]
    events[0].record(stream)
    for event in events[1:]:
        multiply()
        event.record(stream)
    events[-1].synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]


def _timed_here(multiply: Callable[[], object], device: torch.device) -> list[float]:
    """Returns the seconds of each call, by the host's clock."""
    taken = []
    for _ in range(_WARM_UP + _ROUNDS):
        start = time.perf_counter()
        multiply()
        if device.type == "mps":
            torch.mps.synchronize()
        taken.append(time.perf_counter() - start)
    return taken
