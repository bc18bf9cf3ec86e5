"""A BEiT that finds objects: the map of its last block, and a detection head over it (ViTDet, arXiv 2203.16527).

    map = output of the last block, patches alone, unnormed                                              (B, D, h, w)
    losses, or boxes with classes and scores = head(map)

Every block attends globally; ViTDet's windows save memory and are not needed for the result.
"""

from __future__ import annotations

import torch
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.config.tasks.detect import HEADS
from beitcli.heads.detection.faster_rcnn import Detections, FasterRcnn, Targets
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone


class Detector(Backbone):
    """Backbone and head; the backbone's tensors are named as in every BEiT, the head's begin with `detection.`.

    Args:
        head: Its name in `HEADS`.
        head_width: Channels of the pyramid.
        regions: Of an image that the box head learns from.
        drop_path: Rate of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        architecture: Architecture,
        classes: int,
        head: str,
        head_width: int,
        regions: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(**timm_arguments(architecture, drop_path), num_classes=0)
        self.norm, self.fc_norm = nn.Identity(), nn.Identity()  # the map is unnormed
        self.architecture: Architecture = architecture
        self.classes = classes
        self.head_name = head
        self.detection: FasterRcnn = HEADS.load(head)(
            architecture.width, architecture.patch_size, classes, head_width, regions
        )

    def map(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3, H, W), normalised, to (B, D, h, w); `uniforms` as of `run_blocks`."""
        hidden = self.run_blocks(self.embed(self.embed_patches(images)), uniforms=uniforms)
        return hidden[:, 1:].transpose(1, 2).unflatten(2, self.architecture.grid).contiguous()

    def forward(  # type: ignore[override] # it gives losses or detections
        self,
        images: torch.Tensor,
        targets: Targets | None = None,
        draws: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor] | Detections:
        """In training the losses by name, else what is found: see `FasterRcnn`.

        Args:
            images: (B, 3, H, W), normalised, of the architecture's size.
            targets: Of each image `boxes` (m, 4) in its pixels and `labels` (m,) from 0, for a head that finds masks
                `masks` too; in training alone.
            draws: (B, 2) uniform numbers that samples follow from.
            uniforms: (B, 2 * depth) of the drop paths, as of `run_blocks`.
        """
        return self.detection(self.map(images, uniforms), self.architecture.image_size, targets, draws)
