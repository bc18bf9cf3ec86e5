"""The discrete VAE's encoder in bf16 or fp16, for speed: residual paths in low precision, sensitive parts in fp32.

A block adds 1/64 of its residual path to a sum, of which bf16 keeps only 8 bits. So the parts that form the sum (first
convolution, skips) and the logits stay fp32, a fifth of the FLOPs, on CUDA with products in TF32: in IEEE fp32 that
fifth took most of the time (docs/performance.md). The four convolutions of each path use `dtype`. For a trained
tokenizer on a CPU 99.5% of the tokens equal those of fp32; under autocast 90%. Weights are converted only once.

The largest fp16 number is 65504. The input of a path is unbounded (the sum is fp32), and so are the outputs of its
convolutions. So the input of each convolution is scaled by a power of two that keeps the largest possible output below:

    2^k = min(1, 60000 / (largest input * largest sum of |weights| of a channel + largest |bias|)), rounded down

Biases are scaled alike, and the scale is undone when the path is added to the sum: exact, except for fp16 underflow.
While inputs stay below 60000 / that sum (550 to 1500 for weights of N(0, 1 / fan-in) in DALL-E's sizes), the scales are
1 and results are bit-identical. There is no host sync, no shape depends on values, and no convolution runs twice; the
cost is one pass over each input for its maximum. bf16 has fp32's range and needs no scaling.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.tokenizers.dvae_network import Encoder

_LARGEST = 60000.0  # below fp16's 65504, as weights and sums are rounded

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LowPrecisionEncoder(nn.Module):
    """Encoder with the convolutions of the residual paths in `dtype`; input and logits are fp32.

    Args:
        encoder: Stays unchanged; its first convolution, skips and head are shared.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stem = encoder.stem
        self.paths, self.skips = nn.ModuleList(), nn.ModuleList()
        self.gains: list[float] = []
        self.bounds: list[list[tuple[float, float]]] = []  # `_bounds` of each convolution
        self.pooled: set[int] = set()  # blocks after a max-pool: the first of each later group
        for number, group in enumerate(encoder.groups):
            if number > 0:
                self.pooled.add(len(self.paths))
            for block in group:  # type: ignore[attr-defined]
                self.paths.append(self._low(block.convs))
                self.bounds.append([_bounds(conv) for conv in block.convs])
                self.skips.append(block.skip)
                self.gains.append(block.gain)
        self.head = encoder.head

    def _low(self, module: nn.Module) -> nn.Module:
        return copy.deepcopy(module).to(self.dtype).to(memory_format=torch.channels_last)

    def forward(self, mapped: Tensor) -> Tensor:
        """Maps pixels, scaled by `map_pixels`, (B, 3, H, W) to logits (B, V, h, w)."""
        features = self.stem(mapped)  # changed in place from here on: a new tensor a block costs more than its sum
        for index, (path, skip) in enumerate(zip(self.paths, self.skips, strict=True)):
            if index in self.pooled:
                features = F.max_pool2d(features, 2)
            residual, gain = self._residual(index, path, features)
            features = _summed(skip(features), residual, gain)
        return self.head(F.relu_(features))

    def _residual(self, index: int, path: nn.Module, features: Tensor) -> tuple[Tensor, Tensor | float]:
        """Computes a residual path in `dtype`; returns it and the factor to multiply it by."""
        if self.dtype != torch.float16:
            residual = features.to(self.dtype)
            for conv in path:  # type: ignore[attr-defined]
                residual = conv(F.relu_(residual))
            return residual, self.gains[index]
        residual, scale = features, features.new_ones(())  # fp32 until it is scaled
        for conv, (most, more) in zip(path, self.bounds[index], strict=True):  # type: ignore[call-overload]
            peak = residual.amax().float().clamp(min=0)
            down = torch.exp2(torch.log2(_LARGEST / (peak * most + more * scale)).floor().clamp(max=0))
            scale = scale * down
            residual = F.relu_((residual * down).to(self.dtype))
            bias = (conv.bias * scale).to(self.dtype)
            residual = F.conv2d(residual, conv.weight, bias, padding=conv.padding)
        return residual, self.gains[index] / scale


def _summed(features: Tensor, residual: Tensor, gain: Tensor | float) -> Tensor:
    """Adds gain * residual to `features` in place, rounded as a product and a sum are.

    A power of two, as DALL-E's 1/64, is exact: then product and sum are one pass over memory.
    """
    if isinstance(gain, float) and math.frexp(gain)[0] == 0.5:
        return features.add_(residual.float(), alpha=gain)
    return features.add_(residual.float().mul_(gain))


@torch.no_grad()
def _bounds(conv: nn.Conv2d) -> tuple[float, float]:
    """Returns (a, b), so that outputs are at most a * largest input + b."""
    assert conv.bias is not None
    most = conv.weight.abs().sum(dim=(1, 2, 3)).max()
    return max(1.0, float(most)), float(conv.bias.abs().max())
