"""BEiT for semantic segmentation: a head on four feature maps of the backbone.

    maps = outputs of the blocks at 1/3, 1/2, 2/3 and all of the depth, patches only, before the norm     (B, D, h, w)
    logits = head(maps)                                                                        (B, classes, H', W')

These are the blocks of the release: [3, 5, 7, 11] of 12, [7, 11, 15, 23] of 24. transformers' segmenters state others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from beitcli.config.architecture import Architecture, default_out_indices
from beitcli.config.tasks.segment import HEADS
from beitcli.heads.convolution import SegmentationHead
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone


class SegmentationNetwork:
    """What a backbone with a segmentation head has, whoever's the backbone is; a mixin of `nn.Module`s.

    Attributes:
        head_name: Name of the head in `HEADS`.
        out_indices: Indices from 0 of the blocks whose outputs the head takes, -1 for the embeddings before them.
        head_settings: Further keyword arguments of the head's constructor.
    """

    classes: int
    head_name: str
    out_indices: tuple[int, ...]
    head_settings: dict[str, Any]
    decode_head: SegmentationHead

    def add_head(
        self,
        architecture: Architecture,
        classes: int,
        head: str,
        out_indices: Sequence[int] | None,
        head_settings: Mapping[str, Any] | None,
    ) -> None:
        """Builds the head; arguments as of `Segmenter`."""
        self.classes, self.head_name, self.head_settings = classes, head, dict(head_settings or {})
        self.out_indices = default_out_indices(architecture.depth) if out_indices is None else tuple(out_indices)
        self.decode_head = HEADS.load(head)(architecture.width, architecture.patch_size, classes, **self.head_settings)


class Segmenter(SegmentationNetwork, Backbone):
    """Backbone and segmentation head. State-dict keys: the backbone's as in every BEiT, the head's in `decode_head.`.

    Args:
        head: Name of the head in `HEADS`.
        drop_path: Drop path rate of the last block; the rate rises linearly from 0.
        out_indices: Indices from 0 of the blocks whose outputs the head takes, -1 for the embeddings before them; None
            for the release's.
        head_settings: Further keyword arguments of the head's constructor.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        head: str,
        drop_path: float = 0.0,
        *,
        out_indices: Sequence[int] | None = None,
        head_settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(**timm_arguments(architecture, drop_path), num_classes=0)
        self.norm, self.fc_norm = nn.Identity(), nn.Identity()  # the maps are taken before the norm
        self.architecture: Architecture = architecture
        self.add_head(architecture, classes, head, out_indices, head_settings)

    @property
    def num_uniforms(self) -> int:
        """Number of columns of `uniforms`: two per block for drop path, then the channels of the head's dropouts."""
        return 2 * self.architecture.depth + sum(dropout.channels for dropout in self.decode_head.dropouts())

    def maps(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Maps normalized images (B, 3, H, W) to four feature maps (B, D, h, w); `uniforms` as in `run_blocks`."""
        hidden = self.embed(self.embed_patches(images))
        return [
            each[:, 1:].transpose(1, 2).unflatten(2, self.architecture.grid).contiguous()
            for each in self.block_outputs(hidden, self.out_indices, uniforms)
        ]

    def forward(  # type: ignore[override] # returns a tuple of logits
        self, images: torch.Tensor, uniforms: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the logits (B, classes, H', W'), in training mode also those of the auxiliary heads.

        Args:
            images: (B, 3, H, W), normalized, of the architecture's size.
            uniforms: (B, num_uniforms) numbers in [0, 1); None draws them from torch's global generator.
        """
        if uniforms is None:
            return self.decode_head(self.maps(images))
        in_backbone, in_head = uniforms.tensor_split([2 * self.architecture.depth], dim=1)
        self.decode_head.set_uniforms(in_head)
        return self.decode_head(self.maps(images, in_backbone))
