"""Object detection as a task of the training loop (ViTDet, arXiv 2203.16527; Faster R-CNN, arXiv 1506.01497).

    loss = cross entropy and smooth L1 of anchors + the same of regions          each over what could be sampled

Which anchors and regions are sampled follows from the image's place in the step, so a loss depends neither on how a
batch is divided nor on the number of processes. But for the loss of masks: it is the mean over the regions with an
object of one micro-batch of all processes, so that with a fixed `--micro-batch` their number changes it; it is equal
where micro-batch times processes is. Block l learns at lr * layer_decay^(depth + 1 - l), the head at lr; lr falls along
a cosine after a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.normalization import Normalization
from beitcli.data.sources.detection import DetectionSource
from beitcli.data.transforms.base import normalize
from beitcli.engine.detection.inference import score
from beitcli.engine.trainer.bad_images import refuse_many_bad
from beitcli.engine.trainer.ema import EMATask
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.heads.detection import MASK_LOSS, Targets
from beitcli.models.networks.detector import Detector
from beitcli.runtime.compute.device import Compute, choose_workers
from beitcli.runtime.compute.lr_schedules import warmup_cosine
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups

_AT_ONCE = 16  # images of a measurement
_SAMPLERS = 2


class DetectionTask(EMATask):
    """Detection in the training loop."""

    name, kind = "finetune", "detector"
    model: Detector
    averaged: Detector | None

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        model: Detector,
        classes: tuple[str, ...],
        val: DetectionSource,
        compute: Compute,
        normalization: Normalization,
    ) -> None:
        self.config, self.plan, self.classes, self.val, self.compute = config, plan, classes, val, compute
        self.normalization = normalization
        self.model = model.to(compute.device)
        self.attention = self.model.choose_attention(plan.micro_batch, compute)
        self.wrap_parallel(compute, compile_step=bool(config.compile), compression=config.grad_compression)
        self.num_uniforms = _SAMPLERS + (2 * self.model.architecture.depth if config.drop_path else 0)
        self.init_ema(config.ema)
        groups = parameter_groups(self.model, config.weight_decay, config.layer_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        draws = batch.get("uniforms")
        sampled = None if draws is None else draws[:, :_SAMPLERS]
        uniforms = draws[:, _SAMPLERS:] if draws is not None and draws.shape[1] > _SAMPLERS else None
        images = normalize(batch["images"], *self.normalization)
        losses = self.forward(images, targets_of(batch), sampled, uniforms)
        if MASK_LOSS in losses:
            losses[MASK_LOSS] = losses[MASK_LOSS] * self._share_of_masks(len(images))
        return sum(losses.values(), torch.zeros((), device=images.device)), {
            name: value.detach() for name, value in losses.items()
        }

    def _share_of_masks(self, images: int) -> torch.Tensor:
        """What makes the mean over this process's regions its part of the mean over those of all processes.

        The loop weighs processes by their images.
        """
        here = torch.tensor([self.model.detection.samplers[1].positives, images], dtype=torch.float64)
        whole = self.compute.world.all_reduce_sum(here.to(self.compute.device, torch.float32))
        mine, everyone = here / here[1], whole / whole[1]
        return mine[0].to(everyone) / everyone[0].clamp(min=1e-9)

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """AP and its kin on the validation images; `ap/NAME` of each class that is there."""
        workers = choose_workers(self.config.workers, self.compute.device, self.compute.world.local_size)
        model = self.averaged if self.averaged is not None else self.model
        scored = score(
            model,
            self.val,
            self.normalization,
            self.compute,
            batch_size=_AT_ONCE,
            workers=workers,
            check_stop=check_stop,
        )
        hint = "Mend them or raise --max-bad, and add --resume."
        refuse_many_bad(scored.bad, len(self.val), self.config.max_bad, hint)
        figures = scored.figures
        named = {name: getattr(figures, name) for name in FIGURES}
        named |= {f"ap/{name}": value for name, value in zip(self.classes, figures.of_class, strict=True)}
        return {name: value for name, value in named.items() if value is not None} | {"images": scored.images}

    def checkpoint_config(self) -> dict[str, Any]:
        return {
            "architecture": self.model.architecture.as_dict(),
            "classes": list(self.classes),
            "head": self.model.head_name,
            "head_width": self.model.detection.width,
            "regions": self.model.detection.regions,
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "mean": self.normalization[0],
            "std": self.normalization[1],
        }


FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "mask_ap", "mask_ap50", "mask_ap75")


def targets_of(batch: Tensors) -> Targets:
    """What is marked in each image of a batch of `DetectionView`, without the room that is left over."""
    there = batch["classes"] >= 0
    rows = zip(batch["boxes"], batch["classes"], there, strict=True)
    targets = [{"boxes": boxes[kept], "labels": labels[kept]} for boxes, labels, kept in rows]
    if "masks" in batch:
        height, width = batch["images"].shape[-2:]
        for target, packed, kept in zip(targets, batch["masks"], there, strict=True):
            target["masks"] = unpacked(packed[kept], height, width)
    return targets


def unpacked(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, bytes) uint8, eight pixels each, to (n, H, W) uint8 of 0 and 1."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places & 1).flatten(1)[:, : height * width].unflatten(1, (height, width))
