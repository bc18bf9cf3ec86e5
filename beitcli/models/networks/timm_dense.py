"""timm's vision Transformers for segmentation and detection: their feature maps under the heads of this program.

    maps = outputs of the blocks as of a BEiT (`segmenter.py`, `detector.py`), patches only, before the norm

The forward pass is timm's `forward_intermediates`, which drops the class, distillation and register tokens. What timm
has after the blocks (norm, pooling, heads) is removed; all other parameters keep timm's names and layers of decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.heads.detection.faster_rcnn import Detections, Targets
from beitcli.models.networks.detector import DetectionNetwork, Detector
from beitcli.models.networks.segmenter import SegmentationNetwork, Segmenter
from beitcli.models.networks.timm_vit import TimmArchitecture, TimmViT, adopted, create_of


class _TimmMaps(TimmViT):
    """A timm model as a backbone of feature maps, without what comes after its blocks."""

    def __init__(self, model: nn.Module, architecture: TimmArchitecture) -> None:
        super().__init__(model, architecture)
        for name in ("norm", "fc_norm", "head", "head_dist"):
            if hasattr(self, name):
                setattr(self, name, nn.Identity())
        if getattr(self, "attn_pool", None) is not None:
            self.attn_pool = None

    def block_maps(self, images: torch.Tensor, which: Sequence[int]) -> list[torch.Tensor]:
        """Maps normalized images (B, 3, H, W) to the outputs of the given blocks, (B, D, h, w) each.

        Args:
            which: Block indices from 0, ascending; may repeat.
        """
        once = sorted(set(which))
        maps = self.forward_intermediates(  # type: ignore[operator] # timm's
            images, indices=once, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        found = dict(zip(once, maps, strict=True))
        return [found[block] for block in which]


class TimmSegmenter(SegmentationNetwork, _TimmMaps):
    """A timm model with a segmentation head. State-dict keys: timm's, and the head's in `decode_head.`."""

    def __init__(
        self,
        model: nn.Module,
        architecture: TimmArchitecture,
        classes: int,
        head: str,
        *,
        out_indices: Sequence[int] | None = None,
        head_settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, architecture)
        self.add_head(architecture, classes, head, out_indices, head_settings)

    @property
    def num_uniforms(self) -> int:
        """Number of columns of `uniforms`: the channels of the head's dropouts."""
        return sum(dropout.channels for dropout in self.decode_head.dropouts())

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps normalized images (B, 3, H, W) to four feature maps (B, D, h, w)."""
        return self.block_maps(images, self.out_indices)

    def forward(  # type: ignore[override] # returns a tuple of logits
        self, images: torch.Tensor, uniforms: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the logits (B, classes, H', W'), in training mode also those of the auxiliary heads.

        Args:
            images: (B, 3, H, W), normalized, of the architecture's size.
            uniforms: (B, num_uniforms) numbers in [0, 1) for the head; the backbone's drop path is timm's own.
        """
        if uniforms is not None:
            self.decode_head.set_uniforms(uniforms)
        return self.decode_head(self.maps(images))


class TimmDetector(DetectionNetwork, _TimmMaps):
    """A timm model with a detection head. State-dict keys: timm's, and the head's in `detection.`."""

    def __init__(
        self,
        model: nn.Module,
        architecture: TimmArchitecture,
        classes: int,
        head: str,
        head_width: int,
        regions: int,
    ) -> None:
        super().__init__(model, architecture)
        self.add_head(architecture, classes, head, head_width, regions)

    def map(self, images: torch.Tensor) -> torch.Tensor:
        """Maps normalized images (B, 3, H, W) to the feature map (B, D, h, w) of the last block."""
        return self.block_maps(images, [self.architecture.depth - 1])[0]

    def forward(  # type: ignore[override] # returns losses or detections
        self,
        images: torch.Tensor,
        targets: Targets | None = None,
        draws: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor] | Detections:
        """Returns what `Detector.forward` does; the backbone's drop path is timm's own and ignores `uniforms`."""
        return self.detection(self.map(images), self.architecture.image_size, targets, draws)


AnySegmenter = Segmenter | TimmSegmenter
AnyDetector = Detector | TimmDetector


def new_segmenter(
    architecture: Architecture, classes: int, head: str, drop_path: float = 0.0, **settings: Any
) -> AnySegmenter:
    """Builds a segmenter on a BEiT or a timm model; arguments as of `Segmenter`."""
    if not isinstance(architecture, TimmArchitecture):
        return Segmenter(architecture, classes, head, drop_path, **settings)
    model = create_of(architecture, 0, drop_path)
    return adopted(TimmSegmenter, model)(model, architecture, classes, head, **settings)


def new_detector(
    architecture: Architecture, classes: int, head: str, head_width: int, regions: int, drop_path: float = 0.0
) -> AnyDetector:
    """Builds a detector on a BEiT or a timm model; arguments as of `Detector`."""
    if not isinstance(architecture, TimmArchitecture):
        return Detector(architecture, classes, head, head_width, regions, drop_path)
    model = create_of(architecture, 0, drop_path)
    return adopted(TimmDetector, model)(model, architecture, classes, head, head_width, regions)
