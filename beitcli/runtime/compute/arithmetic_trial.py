"""Benchmarks the arithmetic of training steps on the CPU: time of a Transformer block, error of matrix products.

Forward and backward pass of one block with the width, heads and sequence length of the model, on as few images as make
4 GFLOP a thread. The error is that of a linear layer's output and gradients against float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F

from beitcli.runtime.compute.cpu_matmul import ONEDNN, TORCH, has_bf16_units, has_onednn_route, matmul_by

BF16 = "bf16"
TRIAL = "trial"

# Largest relative error of a product against float64. A sum of K terms in fp32, in any order, loses about
# sqrt(K) 2^-24: 3.8e-6 for K = 4096; the blocked sums of MKL and oneDNN measure 2.5e-7 to 4e-7 at K = 768 to 3072.
# Factors rounded to TF32 give 3e-4, to bf16 2e-3: no rounding of factors passes for fp32.
MAX_ERROR = {TORCH: 4e-6, ONEDNN: 4e-6, BF16: 1e-2}

_FLOP, _MOST_THREADS = 4e9, 8  # of a block's forward and backward pass, a thread
_LEAST_LENGTH = 32
_ROUNDS = 3
_AGREE = 1.15  # times the fastest, up to which the second fastest confirms it
_LONGEST, _LONGEST_PAIR = 1.5, 6.0  # seconds, after which two rounds, or one, are enough
_ROWS = 64  # of the products compared with float64

Contexts = Mapping[str, Callable[[], AbstractContextManager[object]]]


@dataclass(frozen=True)
class BlockShape:
    """Shape of the training step to benchmark.

    Attributes:
        images: B, of a micro-batch.
        length: L.
        width: D, of `heads` heads and an MLP of `hidden` units.
    """

    images: int
    length: int
    width: int
    heads: int
    hidden: int

    @property
    def flops(self) -> float:
        """FLOP of the forward and backward pass of one image through one block."""
        linear = 2 * self.length * self.width * (4 * self.width + 2 * self.hidden)
        return 3.0 * (linear + 4 * self.length**2 * self.width)

    def shrunk(self, flops: float) -> BlockShape:
        """Returns the same with as few images, and then tokens, as make at most so many FLOP; at least one image."""
        images = max(1, min(self.images, int(flops // self.flops)))
        length = self.length if self.flops <= flops else max(_LEAST_LENGTH, int(self.length * flops / self.flops))
        return replace(self, images=images, length=min(self.length, length))


@dataclass(frozen=True)
class Tried:
    """Results of the benchmark, by arithmetic.

    Attributes:
        milliseconds: Of a block's forward and backward pass, the fastest of a few, of the arithmetics that passed.
        errors: Largest relative error of a product against float64.
        left_out: The reason, by arithmetic that did not pass; `TRIAL` if nothing could be timed.
        is_settled: Whether each of `milliseconds` was measured twice, which other work on the machine prevents.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    is_settled: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether all could be computed: what was left out is so for its error, and not for an exception."""
        return self.left_out.keys() <= self.errors.keys()


def contexts() -> Contexts:
    """Returns the arithmetics that this processor may be able to do, each with the context of its step."""
    found: dict[str, Callable[[], AbstractContextManager[object]]] = {TORCH: partial(matmul_by, TORCH)}
    if has_onednn_route():
        found[ONEDNN] = partial(matmul_by, ONEDNN)
    if has_bf16_units():
        found[BF16] = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    return found


def benchmark_arithmetic(shape: BlockShape, candidates: Contexts) -> Tried:
    """Compares each arithmetic with float64, and times those within `MAX_ERROR`, in turn."""
    tried = Tried()
    for name, context in candidates.items():
        try:
            error = product_error(shape, context)
        except Exception as failure:  # torch raises many types if a kernel does not run
            tried.left_out[name] = reason(failure)
            continue
        tried.errors[name] = error
        if not error <= MAX_ERROR[name]:  # NaN too
            tried.left_out[name] = f"error {error:.1g} above {MAX_ERROR[name]:.0e}"
    passed = {name: context for name, context in candidates.items() if name not in tried.left_out}
    if len(passed) > 1:
        try:
            times, is_settled = _times(shape, passed)
            return replace(tried, milliseconds=times, is_settled=is_settled)
        except Exception as failure:  # a failed benchmark must not end the run
            tried.left_out[TRIAL] = reason(failure)
    return tried


def reason(failure: Exception) -> str:
    """Returns why an arithmetic could not be tried, for display."""
    return f"{type(failure).__name__}: {str(failure).strip()[:100]}"


def product_error(shape: BlockShape, context: Callable[[], AbstractContextManager[object]]) -> float:
    """Returns max ||a - b|| / ||b|| over the output and the two gradients of a linear layer, against float64."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    inputs, weight = draw(_ROWS, shape.width), draw(shape.hidden, shape.width)
    gradient = draw(_ROWS, shape.hidden)
    with context():
        found = _linear_step(inputs, weight, gradient)
    exact = _linear_step(inputs.double(), weight.double(), gradient.double())
    errors = [
        torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b)
        for a, b in zip(found, exact, strict=True)
    ]
    return float(torch.stack(errors).max())


def _linear_step(inputs: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    leaves = [inputs.clone().requires_grad_(), weight.clone().requires_grad_()]
    with torch.enable_grad():
        out = F.linear(*leaves)
        gradients = torch.autograd.grad(out, leaves, gradient.to(out.dtype))
    return [out.detach(), *gradients]


def _times(shape: BlockShape, candidates: Contexts) -> tuple[dict[str, float], bool]:
    """Returns the milliseconds of each, and whether they are settled.

    Rounds take them in turn after a first one that does not count. The fastest counts, as noise only adds.
    """
    threads = min(_MOST_THREADS, torch.get_num_threads())
    step = _Block.drawn(shape.shrunk(_FLOP * threads)).step
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    begun = time.perf_counter()
    for number in count():
        for name, context in candidates.items():
            start = time.perf_counter()
            with context():
                step()
            taken[name].append(1000 * (time.perf_counter() - start))
        passed = time.perf_counter() - begun
        is_last = (number > 1 and passed > _LONGEST) or (number and passed > _LONGEST_PAIR)
        is_settled = number > 1 and all(_are_confirmed(each[1:]) for each in taken.values())
        if is_last or (is_settled and number >= _ROUNDS):
            break
    return {name: min(each[1:]) for name, each in taken.items()}, is_settled


def _are_confirmed(times: list[float]) -> bool:
    fastest, second = sorted(times)[:2]
    return second <= _AGREE * fastest


@dataclass(frozen=True)
class _Block:
    """Random weights and input of a pre-norm Transformer block.

    Attributes:
        inputs: (B, L, D).
        weights: Of qkv, projection, and the MLP's two layers.
        gradient: (B, L, D), of the output.
    """

    heads: int
    inputs: torch.Tensor
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    gradient: torch.Tensor

    @classmethod
    def drawn(cls, shape: BlockShape) -> _Block:
        """Draws the tensors from a separate generator, so that the run's random state does not change."""
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
        width, hidden, size = shape.width, shape.hidden, (shape.images, shape.length, shape.width)
        layers = ((3 * width, width), (width, width), (hidden, width), (width, hidden))
        qkv, out, up, down = ((draw(*each) * each[1] ** -0.5).requires_grad_() for each in layers)
        return cls(shape.heads, draw(*size).requires_grad_(), (qkv, out, up, down), draw(*size))

    def step(self) -> None:
        """Runs forward and backward pass; the backward pass too is within the context of the caller."""
        with torch.enable_grad():
            out = self._forward()
            torch.autograd.grad(out, [self.inputs, *self.weights], self.gradient.to(out.dtype))

    def _forward(self) -> torch.Tensor:
        qkv, project, up, down = self.weights
        width = self.inputs.shape[-1]
        normed = F.layer_norm(self.inputs, (width,))
        query, key, value = F.linear(normed, qkv).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        mixed = (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        features = self.inputs + F.linear(mixed, project)
        return features + F.linear(F.gelu(F.linear(F.layer_norm(features, (width,)), up)), down)
