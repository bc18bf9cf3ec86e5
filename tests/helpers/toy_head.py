"""A segmentation head as another package would bring it: one file, all imports at its top."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from beitcli.heads.convolution import SegmentationHead

KEYS = ("decode_head.classify.weight",)
CLASSIFIER = "decode_head.classify.weight"


class ToyHead(SegmentationHead):
    """One 1x1 convolution of the last map."""

    def __init__(self, width: int, patch_size: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (self.classify(maps[-1]),)


HEAD = ToyHead
