"""What segmentation heads are made of: convolution, batch norm and ReLU, and their initialisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class SegmentationHead(nn.Module, ABC):
    """Four maps of a backbone to the logits of classes.

    Attributes:
        auxiliary_weight: Of each auxiliary loss beside the main one.
    """

    auxiliary_weight = 0.4

    def dropouts(self) -> list[ChannelDropout]:
        """In the order in which `take_draws` serves them."""
        return [module for module in self.modules() if isinstance(module, ChannelDropout)]

    def take_draws(self, draws: torch.Tensor) -> None:
        """Uniform numbers for the dropout of the next forward pass: (B, sum of the dropouts' channels)."""
        dropouts = self.dropouts()
        for dropout, part in zip(dropouts, draws.split([each.channels for each in dropouts], dim=1), strict=True):
            dropout.draws = part

    @abstractmethod
    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Logits; in training those of the auxiliary heads after them.

        Args:
            maps: Four of (B, D, h, w), shallow ones first.

        Returns:
            (B, classes, H', W') each, at resolutions of their own.
        """


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; the names of its parts are mmseg's and the release's."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(maps)))


class ChannelDropout(nn.Module):
    """`nn.Dropout2d` that may be told its uniform numbers, so that an image's are its own wherever it is computed.

    Attributes:
        draws: (B, channels) in [0, 1); None draws them from torch's generator.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.channels, self.rate = channels, rate
        self.draws: torch.Tensor | None = None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if not self.training or self.draws is None:
            return F.dropout2d(maps, self.rate, self.training)
        kept = (self.draws >= self.rate).to(maps.dtype) / (1 - self.rate)
        return maps * kept[:, :, None, None]


def resize_map(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, by pixel areas (`align_corners=False`)."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def init_head(head: nn.Module) -> None:
    """mmseg's: He's normal for what a ReLU follows, normal of std 0.01 for the classifying convolutions."""
    for module in head.modules():
        if isinstance(module, ConvNormAct):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
    for name, module in head.named_modules():
        if name.endswith("conv_seg") and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
