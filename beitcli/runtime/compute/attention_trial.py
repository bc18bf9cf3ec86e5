"""Benchmarks attention kernels on the shapes and memory layout of the model: time and error of forward and backward.

Queries, keys and values are views of one packed random projection, the gradient of the output is random, and the bias
comes from a gather, as in a block.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch.nn.attention import sdpa_kernel

from beitcli.runtime.compute.device import tf32_disabled
from beitcli.runtime.compute.sdpa_backend import FLEX, SDPA, attention, padded_bias

# Relative error of an output or a gradient against fp32. Measured at lengths 65 to 577: up to 9e-3 in bf16 (4e-3 on
# an H200) and 1.1e-3 in fp16 with the bias and the scores rounded; TF32, if enabled, is near 3e-4.
MAX_ERROR = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-3}

_REFERENCE_IMAGES = 8
_WARMUP, _ROUNDS = 3, 10
_NO_MEMORY = "out of memory"


@dataclass(frozen=True)
class AttentionShape:
    """Shape of the attention to benchmark.

    Attributes:
        images: B, of a micro-batch.
        length: L.
        queries: R of the last block; None if it computes all rows.
        depth: Number of blocks.
    """

    images: int
    heads: int
    length: int
    head_dim: int
    has_bias: bool
    queries: int | None = None
    depth: int = 1

    def forms(self) -> list[tuple[int | None, int]]:
        """Returns (queries, number of blocks with that many queries)."""
        if self.queries is None:
            return [(None, self.depth)]
        return [(None, self.depth - 1), (self.queries, 1)] if self.depth > 1 else [(self.queries, 1)]


@dataclass(frozen=True)
class Tried:
    """Results of the benchmark, by kernel.

    Attributes:
        milliseconds: Forward and backward time of all blocks' attention, of the kernels that passed.
        errors: Their largest relative error of the output and the gradients against fp32.
        left_out: The reason, by kernel that did not pass.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def benchmark_kernels(kernels: Sequence[str], shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Tried:
    """Compares each kernel with the math kernel in fp32, and times those within `MAX_ERROR`.

    Raises:
        torch.OutOfMemoryError: The tensors do not fit, or no kernel passed and one ran out of memory.
    """
    tried = Tried()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of each reason why a kernel does not run
        for queries, blocks in shape.forms():
            trial = _Trial.drawn(shape, queries, dtype, device)
            reference = trial.reference()
            for kernel in [kernel for kernel in kernels if kernel not in tried.left_out]:
                try:
                    _try_kernel(kernel, trial, reference, blocks, tried)
                except Exception as error:  # torch and its compiler raise many types if a kernel does not run
                    tried.left_out[kernel] = reason(error)
    for kernel in tried.left_out:
        tried.milliseconds.pop(kernel, None)
        tried.errors.pop(kernel, None)
    if not tried.milliseconds and _NO_MEMORY in tried.left_out.values():
        raise torch.OutOfMemoryError(_NO_MEMORY)
    return tried


def _try_kernel(kernel: str, trial: _Trial, reference: list[torch.Tensor], blocks: int, tried: Tried) -> None:
    error = _largest_error(trial.step(kernel), reference)
    bound = MAX_ERROR[trial.gradient.dtype]
    if not error <= bound:  # NaN too
        tried.left_out[kernel] = f"error {error:.1g} above {bound:.0e}"
        return
    milliseconds = blocks * _milliseconds(partial(trial.step, kernel), trial.gradient.device)
    tried.errors[kernel] = max(tried.errors.get(kernel, 0.0), error)
    tried.milliseconds[kernel] = tried.milliseconds.get(kernel, 0.0) + milliseconds


@dataclass(frozen=True)
class _Trial:
    """Random tensors in the layout of a block.

    Attributes:
        projected: Outputs of the linear layers: (B, L, 3 D), or (B, R, D) and (B, L, 2 D).
        bias: (L, L, heads) float32, in the layout of a gather from the bias table; None without a bias.
        queries: (B, R) int64, or None.
        gradient: (B, R or L, D), gradient of the output.
    """

    heads: int
    projected: list[torch.Tensor]
    bias: torch.Tensor | None
    queries: torch.Tensor | None
    gradient: torch.Tensor

    @classmethod
    def drawn(cls, shape: AttentionShape, queries: int | None, dtype: torch.dtype, device: torch.device) -> _Trial:
        """Draws the tensors from a separate generator, so that the run's random state does not change."""
        draw = partial(torch.randn, generator=torch.Generator(device).manual_seed(0), device=device)
        batch, length, width = shape.images, shape.length, shape.heads * shape.head_dim
        sizes = [(length, 3 * width)] if queries is None else [(queries, width), (length, 2 * width)]
        return cls(
            shape.heads,
            [draw(batch, *size, dtype=dtype).requires_grad_() for size in sizes],
            draw(length, length, shape.heads).requires_grad_() if shape.has_bias else None,
            None if queries is None else draw(batch, length).argsort(dim=1)[:, :queries],
            draw(batch, sizes[0][0], width, dtype=dtype),
        )

    def step(self, kernel: str) -> list[torch.Tensor]:
        """Returns the output and the gradients of queries, keys, values and bias, as one kernel computes them."""
        if kernel == FLEX:
            return self._step(partial(_compiled_block(), use_flex=True))
        with sdpa_kernel(SDPA[kernel]):
            return self._step(_block)

    def _step(self, block: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = self.projected if self.bias is None else [*self.projected, self.bias]
        with torch.enable_grad():
            out = block(self.projected, self.bias, self.queries, self.heads)
            gradients = torch.autograd.grad(out, leaves, self.gradient)
        return [out.detach(), *gradients]

    def reference(self) -> list[torch.Tensor]:
        """Returns the same as `step`, in fp32 by the math kernel, a few images at a time."""
        with tf32_disabled(self.gradient.device):
            return self._reference()

    def _reference(self) -> list[torch.Tensor]:
        found = []
        for first in range(0, len(self.gradient), _REFERENCE_IMAGES):
            images = slice(first, first + _REFERENCE_IMAGES)
            part = _Trial(
                self.heads,
                [leaf.detach()[images].float().requires_grad_() for leaf in self.projected],
                self.bias,
                None if self.queries is None else self.queries[images],
                self.gradient[images].float(),
            )
            found.append(part.step("math"))
        per_image = 1 + len(self.projected)
        joined = [torch.cat(parts) for parts in list(zip(*found, strict=True))[:per_image]]
        return joined if self.bias is None else [*joined, torch.stack([each[-1] for each in found]).sum(dim=0)]


def _block(
    projected: Sequence[torch.Tensor],
    bias: torch.Tensor | None,
    queries: torch.Tensor | None,
    heads: int,
    *,
    use_flex: bool = False,
) -> torch.Tensor:
    """Attention of a block, without its linear layers: (B, R or L, D)."""
    if queries is None:
        query, key, value = projected[0].unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query = projected[0].unflatten(-1, (heads, -1)).transpose(1, 2)
        key, value = (each.transpose(1, 2) for each in projected[1].unflatten(-1, (2, heads, -1)).unbind(2))
    if bias is not None:
        bias = padded_bias(bias.permute(2, 0, 1).contiguous())
    return attention(query, key, value, bias, queries, use_flex=use_flex).transpose(1, 2).flatten(2)


@lru_cache(maxsize=1)
def _compiled_block() -> Callable[..., torch.Tensor]:
    """Compiles `_block`, so that the bias is computed inside the graph, as in a compiled model."""
    return torch.compile(_block, fullgraph=True, dynamic=False)


def _largest_error(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Returns max ||a - b|| / ||b|| over the output and each gradient: of queries, keys, values and bias."""
    width = found[0].shape[-1]
    errors = []
    for ours, theirs in zip(found, reference, strict=True):
        size = width if ours.shape[-1] % width == 0 else ours.shape[-1]
        for a, b in zip(ours.split(size, dim=-1), theirs.split(size, dim=-1), strict=True):
            errors.append(torch.linalg.vector_norm(a.float() - b) / torch.linalg.vector_norm(b))
    return float(torch.stack(errors).max())  # NaN if any is NaN


def _milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """Returns the median time of a few rounds; on CUDA by events, which do not count work of the host."""
    for _ in range(_WARMUP):
        step()
    if device.type != "cuda":
        seconds = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        return 1000 * statistics.median(seconds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_ROUNDS + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairwise(events))


def reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return _NO_MEMORY
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:100]}" if first else type(error).__name__
