"""torchvision's Faster R-CNN (arXiv 1506.01497) on ViTDet's simple feature pyramid.

    levels       four pyramid levels at strides P/4, P/2, P and 2P for patches of P pixels, and a pooled one at 4P
    proposals    torchvision's region proposal network; anchors with a side of 8 strides, in three aspect ratios
    detections   torchvision's box head: 7 x 7 RoIAlign, two linear layers, classes and boxes

A region of s x s pixels is pooled from level log2(s / 224), counted from stride 16, as in FPN. Boxes are in pixels of
the padded input. The sampling of anchors and regions in training is keyed by image, and losses are divided by the
number that could have been sampled, so that neither depends on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from beitcli.heads.simple_pyramid import SimplePyramid

KEYS = ("detection.pyramid.levels.2.0.weight", "detection.roi_heads.box_predictor.cls_score.weight")
LEVELS = ("0", "1", "2", "3")
SHAPES = (0.5, 1.0, 2.0)  # aspect ratios of the anchors, height / width
ANCHOR_SIDE = 8  # in strides
_HIDDEN = 4  # width of the box head's layers, in widths of the pyramid
_ANCHORS_SAMPLED = 256  # per image
Targets = list[dict[str, torch.Tensor]]
Detections = list[dict[str, torch.Tensor]]


class FasterRcnn(nn.Module):
    """Faster R-CNN head on one feature map: losses in training mode, detections otherwise.

    Attributes:
        predicts_masks: Whether it also predicts instance masks.
        foreground_mean_losses: Names of losses that are means over the foreground regions of a micro-batch.
        width: Channels of the pyramid.
        regions: Regions per image that the box head is trained on; twice as many are proposed.

    Args:
        width_in: Channels of the feature map.
        classes: Number of classes without the background.
    """

    predicts_masks: ClassVar[bool] = False
    foreground_mean_losses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width_in: int, patch_size: int, classes: int, width: int, regions: int) -> None:
        super().__init__()
        from torchvision.models.detection.anchor_utils import AnchorGenerator  # takes a second to load
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        self.width, self.regions = width, regions
        self.pyramid = SimplePyramid(width_in, width)
        sides = [(ANCHOR_SIDE * patch_size * 2**level // 4,) for level in range(len(LEVELS) + 1)]
        anchors = AnchorGenerator(tuple(sides), (SHAPES,) * len(sides))
        proposed = {"training": 2 * regions, "testing": 2 * regions}
        best = {"training": 4 * regions, "testing": 2 * regions}  # per level, before NMS
        self.rpn = RegionProposalNetwork(
            anchors, RPNHead(width, len(SHAPES)), 0.7, 0.3, _ANCHORS_SAMPLED, 0.5, best, proposed, 0.7
        )
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign(list(LEVELS), output_size=7, sampling_ratio=2),
            TwoMLPHead(width * 7 * 7, _HIDDEN * width),
            FastRCNNPredictor(_HIDDEN * width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.samplers = (KeyedSampler(_ANCHORS_SAMPLED, 0.5), KeyedSampler(regions, 0.25))
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = self.samplers

    def forward(
        self,
        features: torch.Tensor,
        size: tuple[int, int],
        targets: Targets | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor] | Detections:
        """Computes losses in training mode, detections otherwise.

        Args:
            features: (B, D, h, w).
            size: (H, W) of the images, in pixels.
            targets: For each image `boxes` (m, 4) float32 and `labels` (m,) int64 from 0; with `predicts_masks` also
                `masks` (m, H, W) uint8.
            uniforms: (B, 2) uniform numbers that seed the sampling; None uses torch's global generator.

        Returns:
            Losses by name; or for each image `boxes` (n, 4), `labels` (n,) from 0 and `scores` (n,); with
            `predicts_masks` also `masks` (n, 1, 28, 28), the probability that a point of the box is inside the object.
        """
        from torchvision.models.detection.image_list import ImageList

        levels = self.pyramid(features)
        # Box arithmetic in bf16 would be off by pixels, so everything after the pyramid is fp32.
        with torch.autocast(features.device.type, enabled=False):
            named = {name: level.float() for name, level in zip(LEVELS, levels, strict=True)}
            pooled = {"pool": F.max_pool2d(named[LEVELS[-1]], 1, 2)}
            images = ImageList(features.new_empty((len(features), 0, *size)), [size] * len(features))
            for column, sampler in enumerate(self.samplers):
                sampler.begin(None if uniforms is None else uniforms[:, column])
            behind = None
            if targets is not None:
                behind = [each | {"labels": each["labels"] + 1} for each in targets]
            proposals, losses = self.rpn(images, named | pooled, behind)
            detections, more = self.roi_heads(named, proposals, images.image_sizes, behind)
        if self.training:
            return self._shared_losses(losses, more, len(features))
        return [each | {"labels": each["labels"] - 1} for each in detections]

    def _shared_losses(
        self, of_anchors: dict[str, torch.Tensor], of_regions: dict[str, torch.Tensor], images: int
    ) -> dict[str, torch.Tensor]:
        """Divides by the number that could be sampled, not as torchvision by that sampled: images get equal weight.

        `foreground_mean_losses` stay unchanged.
        """
        parts = zip((of_anchors, of_regions), self.samplers, strict=True)
        return {
            name: loss
            if name in self.foreground_mean_losses
            else loss * (sampler.sampled / (images * sampler.batch_size_per_image))
            for losses, sampler in parts
            for name, loss in losses.items()
        }


class KeyedSampler:
    """torchvision's balanced positive-negative sampler with a random generator per image.

    Attributes:
        sampled: Number of samples since `begin`.
        positives: Number of positive samples among them.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.sampled = self.positives = 0
        self._draws: list[float] | None = None

    def begin(self, uniforms: torch.Tensor | None) -> None:
        """Starts a batch: resets the counts and sets the random numbers.

        Args:
            uniforms: (B,) uniform numbers; None for torch's global generator.
        """
        self.sampled = self.positives = 0
        self._draws = None if uniforms is None else uniforms.tolist()

    def __call__(self, matched: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Samples positives and negatives; returns their masks, (n,) uint8 per image each.

        Args:
            matched: For each image (n,): 1 or more for positive, 0 for negative, -1 for ignored.
        """
        chosen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for image, places in enumerate(matched):
            generator = None
            if self._draws is not None:
                generator = torch.Generator().manual_seed(int(self._draws[image] * 2**32))
            positive, negative = torch.where(places >= 1)[0], torch.where(places == 0)[0]
            positives = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
            negatives = min(len(negative), self.batch_size_per_image - positives)
            for kind, found, number in ((0, positive, positives), (1, negative, negatives)):
                order = torch.randperm(len(found), generator=generator)[:number].to(found.device)
                mask = torch.zeros_like(places, dtype=torch.uint8)
                mask[found[order]] = 1
                chosen[kind].append(mask)
            self.sampled += positives + negatives
            self.positives += positives
        return chosen


HEAD = FasterRcnn
