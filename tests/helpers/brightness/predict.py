"""`beit predict` of a photometer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from brightness.network import photometer_of

from beitcli.config.predict import PredictConfig
from beitcli.data.loading.batches import Batch
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.events import OnEvent
from beitcli.engine.io.documents import documents
from beitcli.engine.io.prediction import open_prediction
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers


def predict(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent, stdin: BinaryIO | None
) -> Iterator[dict[str, Any]]:
    model, checkpoint = photometer_of(checkpoint, config.size)
    checkpoint, compute, source = open_prediction(config, checkpoint, model, on_event, stdin)
    batching = Batching(compute, config.batch_size, choose_workers(config.workers, compute.device))

    @torch.no_grad()
    def said(batch: Batch) -> list[dict[str, Any]]:
        images = normalize(batch.tensors["images"], *checkpoint.normalization)
        return [{"brightness": value} for value in model(images).tolist()]

    transform = evaluation_view(model.architecture.image_size)
    batches = ((batch, said(batch)) for batch in batching.batches(source, transform))
    yield from documents(source, batches, on_event)
