"""UPerNet, the release's segmentation head (Xiao et al., arXiv 1807.10221), on a pyramid from maps of one resolution.

    pyramid   ConvT2 - BN - GELU - ConvT2 (x4) | ConvT2 (x2) | identity | max-pool (x1/2)      strides 4 8 16 32
    top       3x3 over [map 4, its averages over 1, 2, 3 and 6 bins]
    down      lateral 1x1 of each level, plus the upsampled coarser level; 3x3
    logits    3x3 over all four levels at the finest resolution, dropout, 1x1
    auxiliary FCN on the third level: 3x3 to 256 channels, dropout, 1x1; weight 0.4

Bins and auxiliary head are those of the release, unless a checkpoint of another program has others.

All widths are the backbone's. At 512 pixels and width 768 a forward pass of the head takes 1 TFLOP per image, most of
it in the 3x3 convolutions at stride 4; the backbone takes 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from beitcli.heads.convolution import ChannelDropout, ConvNormAct, SegmentationHead, init_head, resize_map

KEYS = ("decode_head.fpn_bottleneck.conv.weight", "decode_head.fpn1.0.weight", "decode_head.bottleneck.conv.weight")
POOLS = (1, 2, 3, 6)
AUXILIARY: Mapping[str, Any] = {"channels": 256, "convs": 1, "concat": False}
_AUXILIARY_MAP = 2
_DROPOUT = 0.1


class UPerNet(SegmentationHead):
    """UPerNet head; submodule names are those of the release.

    Args:
        pools: Bins a side of each average pooling.
        auxiliary: Arguments of `FcnHead`; None for no auxiliary head.
        auxiliary_weight: Weight of the auxiliary loss.
    """

    def __init__(
        self,
        width: int,
        patch_size: int,
        classes: int,
        *,
        pools: Sequence[int] = POOLS,
        auxiliary: Mapping[str, Any] | None = AUXILIARY,
        auxiliary_weight: float = SegmentationHead.auxiliary_weight,
    ) -> None:
        super().__init__()
        self.auxiliary_weight = auxiliary_weight
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvNormAct(width, width, 1)) for bins in pools
        )
        self.bottleneck = ConvNormAct((1 + len(pools)) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(width, width, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvNormAct(width, width, 3) for _ in range(3))
        self.fpn_bottleneck = ConvNormAct(4 * width, width, 3)
        self.dropout = ChannelDropout(width, _DROPOUT)
        self.conv_seg = nn.Conv2d(width, classes, 1)
        self.auxiliary = None if auxiliary is None else FcnHead(width, classes, **auxiliary)
        init_head(self)

    def pyramid(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Rescales four maps of one resolution by 4, 2, 1 and 1/2."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), third, F.max_pool2d(fourth, 2)]

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        levels = self.pyramid(maps)
        logits = self.conv_seg(self.dropout(self.fpn_bottleneck(self._joined(levels))))
        if not self.training or self.auxiliary is None:
            return (logits,)
        return logits, self.auxiliary(levels[_AUXILIARY_MAP])

    def _joined(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """Merges the levels top-down and concatenates them: (B, 4 D, H', W') at the resolution of the finest level."""
        merged = [lateral(level) for lateral, level in zip(self.lateral_convs, levels[:-1], strict=True)]
        merged.append(self._pooled(levels[-1]))
        for finer in reversed(range(len(merged) - 1)):
            merged[finer] = merged[finer] + resize_map(merged[finer + 1], _size(merged[finer]))
        smooth = [conv(level) for conv, level in zip(self.fpn_convs, merged[:-1], strict=True)]
        finest = _size(smooth[0])
        return torch.cat([resize_map(level, finest) for level in (*smooth, merged[-1])], dim=1)

    def _pooled(self, coarsest: torch.Tensor) -> torch.Tensor:
        means = [resize_map(module(coarsest), _size(coarsest)) for module in self.psp_modules]
        return self.bottleneck(torch.cat([coarsest, *means], dim=1))


class FcnHead(nn.Module):
    """The auxiliary head, used only in training: 3x3 convolutions and a classifier.

    Args:
        channels: Width of the convolutions.
        convs: Number of convolutions.
        concat: Whether another convolution joins their result with the input.
    """

    def __init__(self, width: int, classes: int, *, channels: int, convs: int, concat: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvNormAct(channels if i else width, channels, 3) for i in range(convs)))
        self.conv_cat = ConvNormAct(width + channels, channels, 3) if concat else None
        self.dropout = ChannelDropout(channels, _DROPOUT)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        features = self.convs(maps)
        if self.conv_cat is not None:
            features = self.conv_cat(torch.cat([maps, features], dim=1))
        return self.conv_seg(self.dropout(features))


def _size(maps: torch.Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


HEAD = UPerNet
