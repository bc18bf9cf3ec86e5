"""SETR-PUP, the paper's segmentation head (Zheng et al., arXiv 2012.15840; settings of mmseg).

    logits     LayerNorm, then (3x3 conv, BN, ReLU, bilinear x2) until the resolution is the image's, then 1x1
    auxiliary  of the first three maps: LayerNorm, (3x3 conv, BN, ReLU, bilinear x4), 1x1; weight 0.4

Patches of 16 pixels take 4 upsampling stages, as in the paper; patches of 8 take 3. All convolutions have 256 channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from beitcli.heads.convolution import ConvNormAct, SegmentationHead, init_head

KEYS = ("decode_head.main.conv_seg.weight", "decode_head.auxiliary.2.conv_seg.weight")
CLASSIFIER = "decode_head.main.conv_seg.weight"
WIDTH = 256


class SetrPup(SegmentationHead):
    """Progressive upsampling of the last map; the other maps are used only by the auxiliary heads."""

    def __init__(self, width: int, patch_size: int, classes: int) -> None:
        super().__init__()
        doublings = max(1, round(math.log2(patch_size)))
        self.main = UpsamplingHead(width, classes, doublings, 2)
        self.auxiliary = nn.ModuleList(UpsamplingHead(width, classes, 1, 4) for _ in range(3))
        init_head(self)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        logits = self.main(maps[-1])
        if not self.training:
            return (logits,)
        return logits, *(head(each) for head, each in zip(self.auxiliary, maps[:-1], strict=True))


class UpsamplingHead(nn.Module):
    """Convolution and upsampling stages: (B, D, h, w) -> (B, classes, h scale^stages, w scale^stages)."""

    def __init__(self, width: int, classes: int, stages: int, scale: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up_convs = nn.Sequential()
        for stage in range(stages):
            self.up_convs.append(ConvNormAct(WIDTH if stage else width, WIDTH, 3))
            self.up_convs.append(nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False))
        self.conv_seg = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        normed = self.norm(maps.movedim(1, -1)).movedim(-1, 1)
        return self.conv_seg(self.up_convs(normed))


HEAD = SetrPup
