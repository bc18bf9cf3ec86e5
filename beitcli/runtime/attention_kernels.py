"""Which of torch's fused attention kernels to train with, chosen by timing them on the real shapes.

Flash attention takes no bias, so BEiT's is left to the others. cuDNN's backward pass with a mask has given NaN on
Hopper where the length is 64 modulo 128 (576 tokens, or padding to 192): it is not a candidate there. What gives
numbers that are not finite is never chosen. Written for CUDA, and unmeasured there; elsewhere torch chooses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_ROUNDS = 5


def candidates(length: int, has_bias: bool) -> list[SDPBackend]:
    """Kernels worth a trial, for keys of `length`."""
    kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if not has_bias:
        kernels.insert(0, SDPBackend.FLASH_ATTENTION)
    if not (has_bias and length % 128 == 64):
        kernels.append(SDPBackend.CUDNN_ATTENTION)
    return kernels


def fastest(
    kernels: Sequence[SDPBackend], query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None
) -> SDPBackend | None:
    """The kernel whose forward and backward pass takes least on random tensors of these shapes.

    Args:
        query: (B, heads, R, d); only shape, dtype and device matter, as of the others.
        key: (B, heads, L, d), and of values.
        bias: Broadcastable to (B, heads, R, L).

    Returns:
        None where none of them runs, or gives finite numbers.
    """
    taken = {}
    for kernel in kernels:
        seconds = _time(kernel, query, key, bias)
        if seconds is not None:
            taken[kernel] = seconds
    return min(taken, key=lambda kernel: taken[kernel]) if taken else None


def _time(kernel: SDPBackend, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None) -> float | None:
    """Seconds of a forward and backward pass, least of some; None where it does not run or is not finite."""
    drawn = [_random_like(tensor) for tensor in (query, key, key)]
    mask = None if bias is None else _random_like(bias)
    least = float("inf")
    try:
        for _ in range(1 + _ROUNDS):
            _wait(query.device)
            start = time.perf_counter()
            with torch.enable_grad(), sdpa_kernel(kernel):
                out = F.scaled_dot_product_attention(drawn[0], drawn[1], drawn[2], attn_mask=mask)
                gradients = torch.autograd.grad(out.sum(), drawn if mask is None else [*drawn, mask])
            _wait(query.device)
            least = min(least, time.perf_counter() - start)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # "No available kernel": torch has no other way to say so
        return None
    return least if all(bool(t.isfinite().all()) for t in (out, *gradients)) else None


def _random_like(tensor: torch.Tensor) -> torch.Tensor:
    """Drawn from a generator of its own, for a trial must not move that of the run."""
    generator = torch.Generator(tensor.device).manual_seed(0)
    drawn = torch.randn(tensor.shape, dtype=tensor.dtype, device=tensor.device, generator=generator)
    return drawn.requires_grad_()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def use_fastest(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None) -> SDPBackend | None:
    """Lets this process's attention run on the `fastest` kernel; what that cannot take falls to plain matrices.

    Returns:
        The kernel; None off CUDA, where nothing changes, and where none was found.
    """
    if query.device.type != "cuda":
        return None
    try:
        kernel = fastest(candidates(key.shape[-2], bias is not None), query, key, bias)
    except torch.OutOfMemoryError:  # nothing was learned: torch chooses
        return None
    if kernel is None:
        return None
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(kernel == SDPBackend.FLASH_ATTENTION)
    cuda.enable_mem_efficient_sdp(kernel == SDPBackend.EFFICIENT_ATTENTION)
    cuda.enable_cudnn_sdp(kernel == SDPBackend.CUDNN_ATTENTION)
    cuda.enable_math_sdp(True)
    return kernel
