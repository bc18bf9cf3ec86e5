"""BEiT for object detection: a detection head on the feature map of the last block (ViTDet, arXiv 2203.16527).

    map = output of the last block, patches only, before the norm                                        (B, D, h, w)
    losses, or boxes with classes and scores = head(map)

All blocks use global attention; ViTDet's window attention saves memory and is not needed for the result.
"""

from __future__ import annotations

import torch
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.config.tasks.detect import HEADS
from beitcli.heads.detection.faster_rcnn import Detections, FasterRcnn, Targets
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone


class DetectionNetwork:
    """What a backbone with a detection head has, whoever's the backbone is; a mixin of `nn.Module`s.

    Attributes:
        head_name: Name of the head in `HEADS`.
    """

    classes: int
    head_name: str
    detection: FasterRcnn

    def add_head(self, architecture: Architecture, classes: int, head: str, head_width: int, regions: int) -> None:
        """Builds the head; arguments as of `Detector`."""
        self.classes, self.head_name = classes, head
        self.detection = HEADS.load(head)(architecture.width, architecture.patch_size, classes, head_width, regions)


class Detector(DetectionNetwork, Backbone):
    """Backbone and detection head. State-dict keys: the backbone's as in every BEiT, the head's in `detection.`.

    Args:
        head: Name of the head in `HEADS`.
        head_width: Channels of the feature pyramid.
        regions: Regions per image that the box head is trained on.
        drop_path: Drop path rate of the last block; the rate rises linearly from 0.
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
        self.norm, self.fc_norm = nn.Identity(), nn.Identity()  # the map is taken before the norm
        self.architecture: Architecture = architecture
        self.add_head(architecture, classes, head, head_width, regions)

    def map(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """Maps normalized images (B, 3, H, W) to the feature map (B, D, h, w); `uniforms` as in `run_blocks`."""
        hidden = self.run_blocks(self.embed(self.embed_patches(images)), uniforms=uniforms)
        return hidden[:, 1:].transpose(1, 2).unflatten(2, self.architecture.grid).contiguous()

    def forward(  # type: ignore[override] # returns losses or detections
        self,
        images: torch.Tensor,
        targets: Targets | None = None,
        draws: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor] | Detections:
        """Returns the losses by name in training mode, else the detections; see `FasterRcnn`.

        Args:
            images: (B, 3, H, W), normalized, of the architecture's size.
            targets: For each image `boxes` (m, 4) in pixels and `labels` (m,) from 0, and `masks` if the head predicts
                masks; training only.
            draws: (B, 2) uniform numbers that seed the sampling of anchors and regions.
            uniforms: (B, 2 * depth) for drop path, as in `run_blocks`.
        """
        return self.detection(self.map(images, uniforms), self.architecture.image_size, targets, draws)
