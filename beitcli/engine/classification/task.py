"""Image classification as a task of the training loop (paper section 2.6 and Table 13).

features = fc_norm(mean over the patches of the last block)        (B, D)
loss = cross_entropy(head(features), mixed and smoothed labels); of several labels an image the mean over the labels of
       the binary cross entropy
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from beitcli.config.eval_crop import RELEASED_CROP
from beitcli.data.sources.label_columns import vector_columns
from beitcli.data.transforms.base import normalize
from beitcli.data.transforms.finetuning import erase
from beitcli.engine.classification.evaluate import class_columns, score
from beitcli.engine.classification.label_vectors import label_metrics, score_vectors
from beitcli.engine.classification.mixing import GroupedMixup
from beitcli.engine.trainer.data import val_name
from beitcli.engine.trainer.details import classification_details
from beitcli.engine.trainer.finetuning import FinetunedTask, size
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.models.checkpoints.build import Preprocessing
from beitcli.models.checkpoints.export_formats import timm_settings
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.compute.compile import compiles

_AT_ONCE = 128  # images per forward pass of an evaluation


class ClassificationObjective(nn.Module):
    """Objective from normalized (erased, mixed) images to the loss, as one module that compiles to one graph.

    Args:
        smoothing: Label smoothing, for labels that mixup has not smoothed already.
        multi_label: Whether each label is a choice of its own.
    """

    def __init__(self, model: ImageClassifier, smoothing: float, multi_label: bool = False) -> None:
        super().__init__()
        self.model, self.smoothing, self.multi_label = model, smoothing, multi_label

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        uniforms: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the mean cross entropy.

        Args:
            images: (B, 3, H, W), normalized.
            labels: (B,) int64, or (B, classes) mixed and smoothed; if multi-label (B, classes) of 0 and 1.
            uniforms: (B, 2 * depth) in [0, 1), for drop path.
            valid: (B,) bool, False for images that pad the batch; None if all count.
        """
        logits = self.model(images, uniforms).float()
        if self.multi_label:
            each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
            return each.mean() if valid is None else (each * valid).sum() / valid.sum()
        if labels.dtype == torch.int64:
            losses = F.cross_entropy(
                logits, labels, label_smoothing=self.smoothing, reduction="mean" if valid is None else "none"
            )
        elif valid is None:
            return SoftTargetCrossEntropy()(logits, labels)
        else:
            losses = -(labels * logits.log_softmax(dim=-1)).sum(dim=-1)
        return losses if valid is None else (losses * valid).sum() / valid.sum()


class FinetuneTask(FinetunedTask):
    """Image classification in the training loop."""

    takes_padding = True
    kind = "classifier"
    model: ImageClassifier
    averaged: ImageClassifier | None
    crop = RELEASED_CROP  # set by `finetune`
    records: np.ndarray | None = None  # of the last evaluation

    @property
    def multi_label(self) -> bool:
        """Whether an image has several labels."""
        return self.config.problem == "multi-label"

    def wrap(self) -> None:
        config = self.config
        self.objective = ClassificationObjective(self.model, config.smoothing, self.multi_label)
        self.wrap_parallel(
            self.compute,
            self.objective,
            compile_step=compiles(config.compile, self.compute.device),
            sharded=config.shard,
            compression=config.grad_compression,
        )
        self.num_uniforms = 2 * self.model.architecture.depth if config.drop_path else 0
        self.mixup = None
        if self.multi_label:
            self.columns = vector_columns(self.val, self.classes, binary=True)
            return
        self.columns = class_columns(self.val, list(self.classes), val_name(self.config))
        if config.mixup > 0 or config.cutmix > 0:
            self.mixup = GroupedMixup(config, len(self.classes), self.compute.world)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        """Normalizes, erases and mixes."""
        images = normalize(batch["images"], *self.normalization)
        batch = {"images": images} | {name: each for name, each in batch.items() if name != "images"}
        boxes, noise = batch.pop("erased", None), batch.pop("noise", None)
        if boxes is not None and noise is not None:
            erase(images, boxes, noise)
        if self.mixup is None:
            return batch
        images, labels = self.mixup(images, batch["labels"], step, self.plan.batch_size)
        return batch | {"images": images, "labels": labels}

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        labels = batch["label_vectors" if self.multi_label else "labels"]
        return self.forward(batch["images"], labels, batch.get("uniforms"), batch.get("valid")), {}

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns top-1 and top-5, or mAP and micro-F1, on the validation images, of averaged weights if any."""
        transform = Preprocessing(self.normalization, self.crop)
        if self.multi_label:
            found = score_vectors(self.measured, self.val, self.columns, transform, self.batching(_AT_ONCE, check_stop))
            self.refuse_bad(found.bad)
            return {**label_metrics(found.logits, found.targets), "images": len(found.logits)}
        scores = score(self.measured, self.val, self.columns, transform, self.batching(_AT_ONCE, check_stop))
        self.refuse_bad(scores.bad)
        self.records = scores.records
        return {"top1": scores.top1, "top5": scores.top5, "images": scores.images}

    def measured_classes(self) -> list[float]:
        """Returns the class of each image that was measured; of a run that was finished before, of all to measure."""
        if self.records is not None:
            return [float(number) for number in self.records[:, 1]]
        labels = (self.val.label(index) for index in range(len(self.val)))
        return [float(self.columns[label]) for label in labels if label is not None]

    def details(self) -> dict[str, Any] | None:
        return None if self.records is None else classification_details(self.classes, self.records, self.val)

    def own_config(self) -> dict[str, Any]:
        problem = {"problem": self.config.problem} if self.multi_label else {}
        return self.crop.settings() | problem

    def timm_config(self) -> dict[str, Any]:
        """Lets `timm.create_model("local-dir:CHECKPOINT", pretrained=True)` open the checkpoint as it is."""
        architecture = self.model.architecture
        return timm_settings(
            architecture,
            classes=self.classes,
            pooling=self.model.pooling,
            normalization=self.normalization,
            crop=self.crop,
            problem=self.config.problem,
        )

    def about(self) -> dict[str, str]:
        architecture = self.model.architecture
        kind = f"BEiT ({architecture.positions} positions)"
        if isinstance(architecture, TimmArchitecture):
            kind = f"timm's {architecture.name}"
        flops = forward_flops(architecture, 0, 0)
        return {
            "model": f"{kind} {self.origin}, {size(self.model):,} parameters",
            "images of": self.about_images(),
            "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        }
