"""Semantic segmentation as a task of the training loop (paper section 3.2 and Table 14; the release's UPerNet).

    logits, auxiliary = segmenter(images)                      resized to the crop, bilinear
    loss = cross_entropy(logits, labels) + 0.4 * sum of cross_entropy(auxiliary, labels)

Cross entropy is the mean over labelled pixels. The learning rate decays linearly after a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from beitcli.data.annotations.label_maps import IGNORED
from beitcli.data.sources.segmentation import SegmentationSource
from beitcli.data.transforms.base import normalize
from beitcli.engine.segmentation.mistakes import segmentation_details
from beitcli.engine.segmentation.sliding_window import Counts, count, sliding, window_starts
from beitcli.engine.trainer.finetuning import FinetunedTask
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.errors import BeitError
from beitcli.heads.convolution import resize_map
from beitcli.models.checkpoints.segmenter_settings import SegmenterSettings
from beitcli.models.networks.timm_dense import AnySegmenter
from beitcli.runtime.compute.lr_schedules import warmup_polynomial
from beitcli.runtime.distributed.sync_batch_norm import convert_sync_batchnorm
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext

_WINDOWS = 16  # per forward pass of an evaluation


class SegmentationTask(FinetunedTask):
    """Semantic segmentation in the training loop."""

    kind = "segmenter"
    least_micro_batch = 2  # batch norm over 1 x 1 bins has no variance of one image
    model: AnySegmenter
    averaged: AnySegmenter | None
    val: SegmentationSource
    curve = "linear"
    counts: Counts | None = None  # of the last evaluation

    def wrap(self) -> None:
        convert_sync_batchnorm(self.model, self.compute.world)
        super().wrap()
        self.num_uniforms = self.model.num_uniforms

    def learning_rate(self, step: int) -> float:
        return warmup_polynomial(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    @property
    def short_side(self) -> int:
        """Short side of the images before they are cropped or evaluated, in pixels; 0 for their original size."""
        own = min(self.model.architecture.image_size)
        return own if self.config.short_side is None else self.config.short_side

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        targets = batch["targets"].long()
        logits = self.forward(normalize(batch["images"], *self.normalization), batch.get("uniforms"))
        main, *auxiliary = pixel_losses(logits, targets, self.compute.world)
        loss = main + self.model.decode_head.auxiliary_weight * sum(auxiliary)
        return loss, {"main_loss": main.detach()}

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns mIoU and accuracies on the validation images; `iou/NAME` for classes labelled or predicted there."""
        how = sliding(
            self.model.architecture.image_size,
            normalization=self.normalization,
            short_side=self.short_side,
            windows_at_once=self.at_once(_WINDOWS),
        )
        counts = count(self.measured, self.val, how, self.batching(1, check_stop))
        self.refuse_bad(counts.bad)
        self.counts = counts
        metrics = counts.metrics
        return {
            "miou": metrics.miou,
            "pixel_accuracy": metrics.pixel_accuracy,
            "mean_accuracy": metrics.mean_accuracy,
            "images": counts.images,
            **{f"iou/{name}": iou for name, iou in zip(self.classes, metrics.iou, strict=True) if iou is not None},
        }

    def measuring_cost(self) -> float:
        """Windows of the validation images, of which each has as many as the first one."""
        height, width = window = self.model.architecture.image_size
        how = sliding(window, normalization=self.normalization, short_side=self.short_side)
        try:
            side = self.val.image(0).size
        except BeitError:  # an evaluation leaves it out
            side = (width, height)
        scale = self.short_side / min(side) if self.short_side else 1.0
        starts = (
            window_starts(round(scale * length), wide, step)
            for length, wide, step in zip(side[::-1], window, how.stride, strict=True)
        )
        return len(self.val) * math.prod(map(len, starts)) / 2

    def details(self) -> dict[str, Any] | None:
        counts = self.counts
        if counts is None:
            return None
        return segmentation_details(self.classes, counts.confusion.numpy(), counts.worst, self.val)

    @property
    def uses_all_parameters(self) -> bool:
        return max(self.model.out_indices) == self.model.architecture.depth - 1

    def own_config(self) -> dict[str, Any]:
        network = SegmenterSettings(out_indices=self.model.out_indices, head=self.model.head_settings)
        return {
            "head": self.model.head_name,
            **network.config(self.model.architecture.depth),
            "short_side": self.short_side,
            "ignore_index": self.config.ignore_index,
            "reduce_zero_label": self.config.reduce_zero_label,
        }

    def about(self) -> dict[str, str]:
        return self.about_head(self.model.decode_head, f"over blocks {list(self.model.out_indices)}")


def pixel_losses(
    logits: Iterable[torch.Tensor], targets: torch.Tensor, world: DistributedContext = SINGLE_PROCESS
) -> list[torch.Tensor]:
    """Returns the cross entropy of each head, the mean over labelled pixels; 0 if there are none.

    Each rank returns its part: the mean of the parts, weighted by images, is the mean over all labelled pixels.

    Args:
        logits: (B, classes, h, w) each, resized to the targets.
        targets: (B, H, W) int64, IGNORED if there is no label.
    """
    number = (targets != IGNORED).sum().float()
    here = torch.stack((number, number.new_full((), len(targets))))
    labelled, images = world.all_reduce_weighted_mean(here, 1.0).unbind()
    pixels, share = labelled.clamp(min=1 / world.size), images / len(targets)
    losses = []
    for each in logits:
        resized = resize_map(each.float(), (targets.shape[1], targets.shape[2]))
        losses.append(F.cross_entropy(resized, targets, ignore_index=IGNORED, reduction="sum") / pixels * share)
    return losses
