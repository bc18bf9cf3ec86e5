"""A BEiT, and one number from the mean of its patches."""

from __future__ import annotations

import torch
from brightness import TASK
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.models.checkpoints.build import build_with_head
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone


class Photometer(Backbone):
    """The head's tensors begin with `gauge.`."""

    head_name = "linear"

    def __init__(self, architecture: Architecture, drop_path: float = 0.0) -> None:
        super().__init__(**timm_arguments(architecture, drop_path), num_classes=0)
        self.norm, self.fc_norm = nn.Identity(), nn.Identity()
        self.architecture: Architecture = architecture
        self.gauge = nn.Linear(architecture.width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B,)."""
        hidden = self.run_blocks(self.embed(self.embed_patches(images)))
        return self.gauge(hidden[:, 1:].mean(dim=1))[:, 0]


def photometer_of(
    checkpoint: CheckpointHandle, size: tuple[int, int] | None = None
) -> tuple[Photometer, CheckpointHandle]:
    return build_with_head(checkpoint, TASK, lambda architecture, classes, head: Photometer(architecture), size)
