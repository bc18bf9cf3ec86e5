"""Semantic segmentation as a task of the training loop (paper section 3.2 and Table 14; the release's UPerNet).

    logits, auxiliary = segmenter(images)                      resized to the crop, bilinear
    loss = cross_entropy(logits, labels) + 0.4 * sum of cross_entropy(auxiliary, labels)

Cross entropy is the mean over labelled pixels. Block l learns at lr * layer_decay^(depth + 1 - l), the head at lr;
lr falls linearly after a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.normalization import Normalization
from beitcli.data.annotations.label_maps import IGNORED
from beitcli.data.sources.segmentation import SegmentationSource
from beitcli.data.transforms.base import normalize
from beitcli.engine.segmentation.sliding_window import count, sliding
from beitcli.engine.trainer.bad_images import refuse_many_bad
from beitcli.engine.trainer.ema import EMATask
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.heads.convolution import resize_map
from beitcli.models.networks.segmenter import Segmenter
from beitcli.runtime.compute.device import Compute, choose_workers
from beitcli.runtime.compute.lr_schedules import warmup_polynomial
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.runtime.distributed.sync_batch_norm import share_statistics
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext


class SegmentationTask(EMATask):
    """Segmentation in the training loop."""

    name, kind = "finetune", "segmenter"
    model: Segmenter
    averaged: Segmenter | None

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        model: Segmenter,
        classes: tuple[str, ...],
        val: SegmentationSource,
        compute: Compute,
        normalization: Normalization,
        short_side: int,
    ) -> None:
        self.config, self.plan, self.classes, self.val, self.compute = config, plan, classes, val, compute
        self.normalization, self.short_side = normalization, short_side
        self.model = model.to(compute.device)
        self.attention = self.model.choose_attention(plan.micro_batch, compute)
        share_statistics(self.model, compute.world)
        self.wrap_parallel(compute, compile_step=bool(config.compile), compression=config.grad_compression)
        self.num_uniforms = self.model.num_uniforms
        self.init_ema(config.ema)
        groups = parameter_groups(self.model, config.weight_decay, config.layer_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)

    def learning_rate(self, step: int) -> float:
        return warmup_polynomial(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        targets = batch["targets"].long()
        logits = self.forward(normalize(batch["images"], *self.normalization), batch.get("uniforms"))
        main, *auxiliary = (pixel_loss(each, targets, self.compute.world) for each in logits)
        loss = main + self.model.decode_head.auxiliary_weight * sum(auxiliary)
        return loss, {"main_loss": main.detach()}

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """mIoU and its kin on the validation images; `iou/NAME` of each class that is labelled or predicted there."""
        how = sliding(self.model.architecture.image_size, normalization=self.normalization, short_side=self.short_side)
        workers = choose_workers(self.config.workers, self.compute.device, self.compute.world.local_size)
        model = self.averaged if self.averaged is not None else self.model
        counts = count(model, self.val, how, self.compute, workers, check_stop=check_stop)
        hint = "Mend them or raise --max-bad, and add --resume."
        refuse_many_bad(counts.bad, len(self.val), self.config.max_bad, hint)
        figures = counts.figures
        return {
            "miou": figures.miou,
            "pixel_accuracy": figures.pixel_accuracy,
            "mean_accuracy": figures.mean_accuracy,
            "images": counts.images,
            **{f"iou/{name}": iou for name, iou in zip(self.classes, figures.iou, strict=True) if iou is not None},
        }

    def checkpoint_config(self) -> dict[str, Any]:
        return {
            "architecture": self.model.architecture.as_dict(),
            "classes": list(self.classes),
            "head": self.model.head_name,
            "short_side": self.short_side,
            "ignore_index": self.config.ignore_index,
            "reduce_zero_label": self.config.reduce_zero_label,
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "mean": self.normalization[0],
            "std": self.normalization[1],
        }


def pixel_loss(logits: torch.Tensor, targets: torch.Tensor, world: DistributedContext = SINGLE_PROCESS) -> torch.Tensor:
    """Cross entropy, the mean over labelled pixels; 0 where there are none.

    Of several processes each gives its part: their mean, weighted by their images, is that over all labelled pixels.

    Args:
        logits: (B, classes, h, w), resized to the targets.
        targets: (B, H, W) int64, IGNORED where there is no label.
    """
    resized = resize_map(logits.float(), (targets.shape[1], targets.shape[2]))
    total = F.cross_entropy(resized, targets, ignore_index=IGNORED, reduction="sum")
    here = torch.stack(((targets != IGNORED).sum().float(), total.new_tensor(len(targets)).detach()))
    labelled, images = world.all_reduce_weighted_mean(here, 1.0).unbind()
    return total / labelled.clamp(min=1 / world.size) * (images / len(targets))
