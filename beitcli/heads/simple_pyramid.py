"""ViTDet's simple feature pyramid (Li et al., arXiv 2203.16527, section 3): four resolutions from only the last map.

    x4   ConvT2 (D -> D/2) - LN - GELU - ConvT2 (D/2 -> D/4)
    x2   ConvT2 (D -> D/2)
    x1   the map itself
    /2   max-pool
    each then 1x1 convolution - LN - 3x3 convolution - LN

LN normalizes over the channels of a pixel, so nothing depends on the batch or the world size.
"""

from __future__ import annotations

import torch
from timm.layers import LayerNorm2d
from torch import nn

SCALES = (4.0, 2.0, 1.0, 0.5)  # relative to the patch grid, finest first


class SimplePyramid(nn.Module):
    """Builds four feature maps from one.

    Args:
        width: Channels of the input map, a multiple of 4.
        channels: Channels of every level.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        scalings = (
            nn.Sequential(
                nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                LayerNorm2d(width // 2),
                nn.GELU(),
                nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
            ),
            nn.Sequential(nn.ConvTranspose2d(width, width // 2, 2, stride=2)),
            nn.Sequential(),
            nn.Sequential(nn.MaxPool2d(2)),
        )
        widths = (width // 4, width // 2, width, width)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *scaling,
                nn.Conv2d(inputs, channels, 1, bias=False),
                LayerNorm2d(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for scaling, inputs in zip(scalings, widths, strict=True)
        )

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Maps (B, D, h, w) to (B, channels, h', w') at each of `SCALES`."""
        return [level(features) for level in self.levels]
