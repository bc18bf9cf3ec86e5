"""Building blocks of segmentation heads: base class, conv-norm-ReLU, channel dropout, initialization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class SegmentationHead(nn.Module, ABC):
    """Base class: maps four feature maps of a backbone to class logits.

    Attributes:
        auxiliary_weight: Weight of each auxiliary loss; the main loss has weight 1.
    """

    auxiliary_weight = 0.4

    def dropouts(self) -> list[ChannelDropout]:
        """Returns the dropout modules in the order in which `set_uniforms` assigns its columns."""
        return [module for module in self.modules() if isinstance(module, ChannelDropout)]

    def set_uniforms(self, uniforms: torch.Tensor) -> None:
        """Sets the uniform numbers for dropout in the next forward pass: (B, sum of the dropouts' channels)."""
        dropouts = self.dropouts()
        for dropout, part in zip(dropouts, uniforms.split([each.channels for each in dropouts], dim=1), strict=True):
            dropout.uniforms = part

    @abstractmethod
    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Computes the logits; in training mode, those of the auxiliary heads follow.

        Args:
            maps: Four maps (B, D, h, w), shallow ones first.

        Returns:
            (B, classes, H', W') each; resolutions may differ.
        """


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, ReLU; submodule names are those of mmseg and the release."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(maps)))


class ChannelDropout(nn.Module):
    """`nn.Dropout2d` with optional external random numbers, so that an image's mask does not depend on its batch.

    Attributes:
        uniforms: (B, channels) uniform in [0, 1); None draws from torch's global generator.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.channels, self.rate = channels, rate
        self.uniforms: torch.Tensor | None = None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if not self.training or self.uniforms is None:
            return F.dropout2d(maps, self.rate, self.training)
        kept = (self.uniforms >= self.rate).to(maps.dtype) / (1 - self.rate)
        return maps * kept[:, :, None, None]


def resize_map(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes bilinearly (`align_corners=False`); a map of that size is returned as it is."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def init_head(head: nn.Module) -> None:
    """Initializes as mmseg: Kaiming normal for convolutions before a ReLU, normal with std 0.01 for classifiers."""
    for module in head.modules():
        if isinstance(module, ConvNormAct):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
    for name, module in head.named_modules():
        if name.endswith("conv_seg") and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
