"""A discrete VAE's encoder in bf16 or fp16, for speed: which of its parts are too sensitive for it, and which are not.

A block adds 1/64 of its residual path to a sum that bf16 keeps 8 bits of, so what makes the sum (the first convolution,
the skips) and the logits stay fp32: a fifth of the arithmetic. The four convolutions of each path are low. Of a
trained tokenizer's tokens 99.5% are fp32's so, 90% under autocast. Weights are converted once, not at each call.

fp16 ends at 65504. Nothing bounds what enters a path (the sum is fp32), nor what its convolutions make of it, so the
input of each is multiplied by a power of two that keeps even its largest possible output below that:

    2^k = min(1, 60000 / (largest input * largest sum of |weights| of a channel + largest |bias|)), rounded down

Biases are multiplied alike, and where the path is added to the sum all of it is taken back: exact, but for what becomes
too small for fp16. As long as inputs stay below 60000 / that sum (550 to 1500 for weights of N(0, 1 / fan-in) in
DALL-E's sizes) the factors are 1, and not one bit differs. Nothing waits for the device, no shape depends on values, no
convolution is computed twice; the cost is a pass over each input for its peak. bf16 has fp32's range, and none of this.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from beitcli.tokenizers.dvae import Encoder

_LARGEST = 60000.0  # of fp16's 65504: weights and sums are rounded

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LowPrecisionEncoder(nn.Module):
    """Mapped fp32 pixels to fp32 logits, with the convolutions of the residual paths in `dtype`.

    Args:
        encoder: Left as it is; the first convolution, skips and head are shared with it.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.stem = encoder.stem
        self.paths, self.skips = nn.ModuleList(), nn.ModuleList()
        self.gains: list[float] = []
        self.bounds: list[list[tuple[float, float]]] = []  # of each convolution: most that it multiplies by, and adds
        self.pooled: set[int] = set()  # the first block of each further group
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
        """(B, 3, H, W) to (B, V, h, w)."""
        features = self.stem(mapped)
        for index, (path, skip) in enumerate(zip(self.paths, self.skips, strict=True)):
            if index in self.pooled:
                features = F.max_pool2d(features, 2)
            residual, gain = self._residual(index, path, features)
            features = skip(features) + gain * residual.float()
        return self.head(F.relu(features))

    def _residual(self, index: int, path: nn.Module, features: Tensor) -> tuple[Tensor, Tensor | float]:
        """A path in `dtype`, and what to multiply it by."""
        if self.dtype != torch.float16:
            residual = features.to(self.dtype)
            for conv in path:  # type: ignore[attr-defined]
                residual = conv(F.relu(residual))
            return residual, self.gains[index]
        residual, scale = features, features.new_ones(())  # fp32, as long as it is only scaled
        for conv, (most, more) in zip(path, self.bounds[index], strict=True):  # type: ignore[call-overload]
            peak = residual.amax().float().clamp(min=0)
            down = torch.exp2(torch.log2(_LARGEST / (peak * most + more * scale)).floor().clamp(max=0))
            scale = scale * down
            residual = F.relu((residual * down).to(self.dtype))
            bias = (conv.bias * scale).to(self.dtype)
            residual = F.conv2d(residual, conv.weight, bias, padding=conv.padding)
        return residual, self.gains[index] / scale


@torch.no_grad()
def _bounds(conv: nn.Conv2d) -> tuple[float, float]:
    """What the largest output can be: the first times the largest input, plus the second."""
    assert conv.bias is not None
    most = conv.weight.abs().sum(dim=(1, 2, 3)).max()
    return max(1.0, float(most)), float(conv.bias.abs().max())
