"""`beit predict` of a classifier: one document per image with its classes, in input order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

from beitcli.config.predict import PredictConfig
from beitcli.engine.classification.evaluate import class_names, classify
from beitcli.engine.events import OnEvent, ignore, warn
from beitcli.engine.io.documents import documents
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.build import classifier_of, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers


def predict(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "label", "score", "top": [[label, score], ...]}`, or `{"path", "error"}`.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        DataError: After the last image, if some could not be read.
    """
    model, checkpoint = classifier_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    model.to(compute.device)
    classes = class_names(checkpoint)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)

    def said(logits: torch.Tensor) -> Iterator[dict[str, Any]]:
        scores, columns = logits.softmax(dim=1).topk(min(config.top, len(classes)), dim=1)
        for row, places in zip(scores.tolist(), columns.tolist(), strict=True):
            top = [[classes[place], value] for place, value in zip(places, row, strict=True)]
            yield {"label": top[0][0], "score": top[0][1], "top": top}

    batching = Batching(compute, config.batch_size, choose_workers(config.workers, compute.device))
    batches = classify(model, source, preprocessing(checkpoint, model), batching)
    yield from documents(source, ((batch, said(logits) if len(batch) else ()) for batch, logits in batches), on_event)
