"""A tokenizer's encoder in bf16 or fp16, for speed: which of its parts are too sensitive for it, and which are not.

A block adds 1/64 of its residual path to a sum that bf16 keeps 8 bits of, so what makes the sum (the first convolution,
the skips) and the logits stay fp32: a fifth of the arithmetic. The four convolutions of each path are low. Of a
trained tokenizer's tokens 99.5% are fp32's so, 90% under autocast. Weights are converted once, not at each call.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.tokenizers.dvae import Bottleneck, DiscreteVAE, Encoder

Precision = Literal["fp32", "bf16", "fp16"]
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
        self.pooled: set[int] = set()  # the first block of each further group
        for number, group in enumerate(encoder.groups):
            if number > 0:
                self.pooled.add(len(self.paths))
            for block in group:  # type: ignore[attr-defined]
                assert isinstance(block, Bottleneck)
                self.paths.append(self._low(block.convs))
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
            residual = features.to(self.dtype)
            for conv in path:  # type: ignore[attr-defined]
                residual = conv(F.relu(residual))
            features = skip(features) + self.gains[index] * residual.float()
        return self.head(F.relu(features))


def with_encoder(model: DiscreteVAE, encoder: nn.Module) -> DiscreteVAE:
    """The same tokenizer with another way to compute its encoder; the decoder is shared."""
    with torch.device("meta"):
        other = DiscreteVAE(model.architecture, decoder=False)
    other.encoder = encoder
    other.decoder = model.decoder
    return other.requires_grad_(False).eval()


def in_precision(model: DiscreteVAE, precision: Precision) -> DiscreteVAE:
    """The tokenizer with its encoder in `precision`; fp32 is the model itself."""
    if precision == "fp32":
        return model
    return with_encoder(model, LowPrecisionEncoder(model.encoder, DTYPES[precision]))  # type: ignore[arg-type]


def compiled(model: DiscreteVAE, size: tuple[int, int]) -> tuple[DiscreteVAE, str]:
    """The tokenizer with its encoder compiled for images of `size` (H, W), and nothing; or itself, and why not.

    One graph serves every batch of more than one image. The compiler is tried out here, because it works only when a
    first batch comes and fails in as many ways as there are machines without one.
    """
    encoder = model.encoder
    device = next(encoder.parameters()).device
    try:
        quick = with_encoder(model, torch.compile(encoder))  # type: ignore[arg-type]
        for count in (2, 3):  # the second size makes the batch a variable of the graph
            quick.encode(torch.zeros(count, 3, *size, device=device))
    except Exception as error:  # the compiler raises anything
        return model, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return quick, ""
