"""Object detection as a task of the training loop (ViTDet, arXiv 2203.16527; Faster R-CNN, arXiv 1506.01497).

    loss = cross entropy and smooth L1 of anchors + the same of regions          each over what could be sampled

The sampling of anchors and regions is keyed by the image's position in the step, so losses depend neither on
micro-batches nor on world size. The exception is the mask loss: it is the mean over the regions with an object of one
micro-batch on all ranks. With a fixed `--micro-batch` it changes with the world size; it is equal if micro-batch size
times world size is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from beitcli.data.sources.detection import DetectionSource
from beitcli.data.transforms.base import normalize
from beitcli.engine.detection.details import detection_details
from beitcli.engine.detection.inference import Scored, score
from beitcli.engine.detection.metrics import METRICS
from beitcli.engine.trainer.finetuning import FinetunedTask
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.heads.detection.faster_rcnn import Targets
from beitcli.models.networks.timm_dense import AnyDetector

_AT_ONCE = 16  # images per forward pass of an evaluation
_SAMPLERS = 2


class DetectionTask(FinetunedTask):
    """Object detection in the training loop."""

    kind = "detector"
    model: AnyDetector
    averaged: AnyDetector | None
    val: DetectionSource
    scored: Scored | None = None  # of the last evaluation
    masks: torch.Tensor | None = None  # of the objects of the step's images, packed, one image's after the other's

    def wrap(self) -> None:
        super().wrap()
        self.num_uniforms = _SAMPLERS + (2 * self.model.architecture.depth if self.config.drop_path else 0)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        """Keeps the masks of the whole batch, and adds each image's `first_mask`: micro-batches are taken by images."""
        if "masks" not in batch:
            return batch
        counts = (batch["classes"] >= 0).sum(dim=1)
        self.masks = batch["masks"]
        rest = {name: tensor for name, tensor in batch.items() if name != "masks"}
        return rest | {"first_mask": counts.cumsum(0) - counts}

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        uniforms = batch.get("uniforms")
        sampled = None if uniforms is None else uniforms[:, :_SAMPLERS]
        uniforms = uniforms[:, _SAMPLERS:] if uniforms is not None and uniforms.shape[1] > _SAMPLERS else None
        images = normalize(batch["images"], *self.normalization)
        losses = self.forward(images, targets_of(batch, self.masks), sampled, uniforms)
        for name in self.model.detection.foreground_mean_losses:
            losses[name] = losses[name] * self._share_of_masks(len(images))
        return sum(losses.values(), torch.zeros((), device=images.device)), {
            name: value.detach() for name, value in losses.items()
        }

    def _share_of_masks(self, images: int) -> torch.Tensor:
        """Returns the factor that makes the mean over this rank's regions its part of the mean over those of all ranks.

        The loop weights ranks by their number of images.
        """
        here = torch.tensor([self.model.detection.samplers[1].positives, images], dtype=torch.float64)
        whole = self.compute.world.all_reduce_sum(here.to(self.compute.device, torch.float32))
        mine, everyone = here / here[1], whole / whole[1]
        return mine[0].to(everyone) / everyone[0].clamp(min=1e-9)

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns AP metrics on the validation images, and `ap/NAME` of each class that occurs there."""
        batching = self.batching(_AT_ONCE, check_stop)
        scored = score(self.measured, self.val, self.normalization, batching)
        self.refuse_bad(scored.bad)
        self.scored = scored
        metrics = scored.metrics
        named = {name: getattr(metrics, name) for name in METRICS}
        named |= {f"ap/{name}": value for name, value in zip(self.classes, metrics.of_class, strict=True)}
        return {name: value for name, value in named.items() if value is not None} | {"images": scored.images}

    def details(self) -> dict[str, Any] | None:
        scored = self.scored
        return None if scored is None else detection_details(self.classes, scored.metrics, scored.found, self.val)

    def own_config(self) -> dict[str, Any]:
        return {
            "head": self.model.head_name,
            "head_width": self.model.detection.width,
            "regions": self.model.detection.regions,
        }

    def about(self) -> dict[str, str]:
        patch_size = self.model.architecture.patch_size
        strides = ", ".join(str(patch_size * 2**level // 4) for level in range(5))
        return self.about_head(self.model.detection, f"at strides {strides}")


def targets_of(batch: Tensors, masks: torch.Tensor | None = None) -> Targets:
    """Returns the objects of each image of a batch of `DetectionTransform`, without the padding, which is behind them.

    The numbers of objects are read from the device at once: to choose rows by a mask waits for it, image by image.

    Args:
        masks: (n, bytes) of all images, packed; those of an image of the batch begin at its `first_mask`.
    """
    counts = (batch["classes"] >= 0).sum(dim=1)
    first_masks = batch["first_mask"] if masks is not None else torch.zeros_like(counts)
    height, width = batch["images"].shape[-2:]
    targets = []
    for image, (count, first) in enumerate(torch.stack((counts, first_masks), dim=1).tolist()):
        target = {name: batch[key][image, :count] for name, key in (("boxes", "boxes"), ("labels", "classes"))}
        if masks is not None:
            target["masks"] = unpacked(masks[first : first + count], height, width)
        targets.append(target)
    return targets


def unpacked(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpacks (n, bytes) uint8, eight pixels per byte, to (n, H, W) uint8 of 0 and 1."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places & 1).flatten(1)[:, : height * width].unflatten(1, (height, width))
