"""Runs a classifier over a source: batches of preprocessed images to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from beitcli.data.loading.batches import Batch
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.build import Preprocessing
from beitcli.models.networks.classifier import ImageClassifier


def classify(
    model: ImageClassifier, source: Source, transform: Preprocessing, batching: Batching
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Yields this rank's batches in order with their (B, classes) fp32 logits; these are empty for an empty batch."""
    crop = evaluation_view(model.architecture.image_size, transform.crop, transform.normalization)
    for batch, tensors in batching.on_device(source, crop):
        if not len(batch):
            yield batch, torch.empty(0)
            continue
        images = normalize(tensors["images"], *transform.normalization)
        with torch.inference_mode(), batching.compute.autocast():
            logits = model(images)
        yield batch, logits.float()
