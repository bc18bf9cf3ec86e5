"""Encoder and decoder of the discrete VAE (DALL-E, arXiv 2102.12092, App. A), with the defaults of OpenAI's tokenizer.

Encoder: convolution, groups of bottleneck blocks with 2x2 max-pooling between groups, ReLU, 1x1 convolution to V
logits. Decoder: the reverse, with nearest-neighbor upsampling. Parameters at the defaults: encoder 53,786,240, decoder
43,829,766. Encoding 112x112 pixels to 14x14 tokens costs 52 GFLOP per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DVAEArchitecture:
    """Architecture of a `DiscreteVAE`; the defaults are DALL-E's."""

    vocab_size: int = 8192  # codes
    width: int = 256  # channels of the group at full resolution; each pool doubles them
    groups: int = 4
    blocks_per_group: int = 2
    decoder_init_width: int = 128  # channels between the codes and the decoder's first group
    init_gain: float = 1.0  # initial weights are N(0, gain^2 / fan_in); 2**0.5 (He) trains small tokenizers faster
    output_channels: int = 6  # 6: mean and ln scale of the logit-Laplace density; 3: pixels only

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "groups", "blocks_per_group", "decoder_init_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"The tokenizer's {name} is {getattr(self, name)}.", "Give 1 or more.")
        if self.init_gain <= 0:
            raise UsageError(f"The tokenizer's init_gain is {self.init_gain}.", "Give more than 0.")
        if self.width % 4:
            raise UsageError(f"The tokenizer's width is {self.width}.", "Give a multiple of 4.")
        if self.output_channels not in (3, 6):
            raise UsageError(f"The tokenizer's output_channels is {self.output_channels}.", "Give 3 or 6.")

    @property
    def downsample(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (self.groups - 1)

    @property
    def residual_gain(self) -> float:
        """Factor of each block's residual path: 1 / (number of blocks)^2."""
        return 1.0 / (self.groups * self.blocks_per_group) ** 2


def convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Builds a convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2)


def initialize(module: nn.Module, gain: float) -> None:
    """Initializes the weights of all convolutions from N(0, gain^2 / fan_in), biases with zero."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=gain * conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


Kernels = tuple[int, int, int, int]


class Bottleneck(nn.Module):
    """skip(features) + gain * residual(features); the residual path is four ReLU-first convolutions."""

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: Kernels, gain: float) -> None:
        super().__init__()
        hidden = out_channels // 4
        channels = (in_channels, hidden, hidden, hidden, out_channels)
        self.gain = gain
        self.skip = nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)
        self.convs = nn.ModuleList(map(convolution, channels[:-1], channels[1:], kernel_sizes))

    def forward(self, features: Tensor, scale: int = 1) -> Tensor:
        """Maps (B, in_channels, H, W) to (B, out_channels, scale * H, scale * W).

        Args:
            scale: Factor by which the features are enlarged first, to the nearest neighbor. The skip and the first
                convolution, which must be 1x1 then, give the same values before it as after it, with fewer products.
        """
        first, *others = self.convs
        residual = enlarged(first(F.relu(features)), scale)
        for conv in others:
            residual = conv(F.relu_(residual))  # in place: no pass over memory that is new
        return enlarged(self.skip(features), scale) + residual.mul_(self.gain)


def enlarged(features: Tensor, scale: int) -> Tensor:
    """Repeats each of (B, C, H, W) `scale` times along H and W."""
    return features if scale == 1 else F.interpolate(features, scale_factor=float(scale), mode="nearest")


class Encoder(nn.Module):
    """Encoder: pixels, scaled by `map_pixels`, to logits over the codes."""

    kernel_sizes = (3, 3, 3, 1)

    def __init__(self, architecture: DVAEArchitecture) -> None:
        super().__init__()
        widths = [architecture.width * 2**group for group in range(architecture.groups)]
        self.stem = convolution(3, widths[0], 7)
        self.groups = nn.ModuleList(
            block_group(in_channels, out_channels, self.kernel_sizes, architecture)
            for in_channels, out_channels in zip([widths[0], *widths], widths, strict=False)
        )
        self.head = convolution(widths[-1], architecture.vocab_size, 1)

    def forward(self, mapped: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, V, h, w)."""
        features = self.stem(mapped)
        for index, group in enumerate(self.groups):
            if index > 0:
                features = F.max_pool2d(features, 2)
            features = group(features)
        return self.head(F.relu(features))


class Decoder(nn.Module):
    """Decoder: one-hot or relaxed codes to the parameters of the pixel distribution."""

    kernel_sizes = (1, 3, 3, 3)

    def __init__(self, architecture: DVAEArchitecture) -> None:
        super().__init__()
        widths = [architecture.width * 2**group for group in reversed(range(architecture.groups))]
        self.stem = convolution(architecture.vocab_size, architecture.decoder_init_width, 1)
        self.groups = nn.ModuleList(
            block_group(in_channels, out_channels, self.kernel_sizes, architecture)
            for in_channels, out_channels in zip([architecture.decoder_init_width, *widths], widths, strict=False)
        )
        self.head = convolution(widths[-1], architecture.output_channels, 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Computes the stem's output for tokens without one-hot codes: (B, h, w) -> (B, decoder_init_width, h, w)."""
        features = F.embedding(tokens, self.stem.weight[:, :, 0, 0].t()).permute(0, 3, 1, 2)
        return features + self.stem.bias[:, None, None]  # type: ignore[index]

    def forward(self, codes: Tensor) -> Tensor:
        """Maps codes (B, V, h, w), which sum to 1 over V, to (B, output_channels, H, W)."""
        return self.unfold(self.stem(codes))

    def unfold(self, features: Tensor) -> Tensor:
        """Maps the stem's output (B, decoder_init_width, h, w) to (B, output_channels, H, W)."""
        for index, group in enumerate(self.groups):
            for number, block in enumerate(group.children()):
                features = block(features, scale=2 if index and not number else 1)
        return self.head(F.relu(features))


def block_group(
    in_channels: int, out_channels: int, kernel_sizes: Kernels, architecture: DVAEArchitecture
) -> nn.Sequential:
    """Builds `blocks_per_group` bottlenecks; the first one changes the width."""
    gain = architecture.residual_gain
    widths = [in_channels] + [out_channels] * architecture.blocks_per_group
    return nn.Sequential(*(Bottleneck(width, out_channels, kernel_sizes, gain) for width in widths[:-1]))
