"""`beit predict` of a classifier: one document per image with its classes, in input order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import torch
from PIL import Image

from beitcli.config.predict import PredictConfig
from beitcli.config.problem import Problem
from beitcli.data.sources.base import Source
from beitcli.engine.classification.evaluate import class_names
from beitcli.engine.classification.inference import classify
from beitcli.engine.events import Drawn, OnEvent, ignore
from beitcli.engine.io.documents import documents
from beitcli.engine.io.prediction import open_prediction
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.build import classifier_of, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.pictures.canvas import Panel
from beitcli.runtime.compute.device import Compute, choose_workers


def predict(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "label", "score", "top": [[label, score], ...]}`, or `{"path", "error"}`.

    Scores are probabilities: by softmax, of a multi-label classifier by sigmoid, and then `labels` are those of
    `config.score_threshold` or more. Of a regression they are the outputs, all of them in their order.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        DataError: After the last image, if some could not be read.
    """
    model, checkpoint = classifier_of(checkpoint, config.size)
    checkpoint, compute, source = open_prediction(config, checkpoint, model, on_event, stdin)
    yield from predictions(config, checkpoint, model, compute, source, on_event)


def predictions(
    config: PredictConfig,
    checkpoint: CheckpointHandle,
    model: ImageClassifier,
    compute: Compute,
    source: Source,
    on_event: OnEvent = ignore,
) -> Iterator[dict[str, Any]]:
    """Yields the documents of `predict` for opened images, from the checkpoint's model on its device."""
    classes = class_names(checkpoint)

    def said(indices: Sequence[int], logits: torch.Tensor) -> Iterator[dict[str, Any]]:
        scores = _scores(logits, checkpoint.problem)
        best, columns = scores.topk(min(config.top, len(classes)), dim=1)
        every: list[list[float]] = [[]] * len(indices)
        if checkpoint.problem != "single-label":  # which tells the best only: 21,841 Python floats take a millisecond
            every = scores.tolist()
        for index, row, values, places in zip(indices, every, best.tolist(), columns.tolist(), strict=True):
            top = [[classes[place], value] for place, value in zip(places, values, strict=True)]
            if checkpoint.problem == "regression":
                top = [list(pair) for pair in zip(classes, row, strict=True)]
            document = {"label": top[0][0], "score": top[0][1], "top": top}
            if checkpoint.problem == "multi-label":
                chosen = sorted(zip(classes, row, strict=True), key=lambda pair: -pair[1])
                document["labels"] = [[name, value] for name, value in chosen if value >= config.score_threshold]
            if config.preview:
                shown = tuple(f"{name} {value:.3g}" for name, value in top[:3])
                on_event(Drawn([Panel(Image.fromarray(source.pixels(index)), source.path(index), shown)]))
            yield document

    batching = Batching(compute, config.batch_size, choose_workers(config.workers, compute.device))
    batches = classify(model, source, preprocessing(checkpoint, model), batching)
    yield from documents(
        source, ((batch, said(batch.indices, logits) if len(batch) else ()) for batch, logits in batches), on_event
    )


def _scores(logits: torch.Tensor, problem: Problem) -> torch.Tensor:
    """(B, classes) fp32 logits to what they mean."""
    if problem == "regression":
        return logits
    return logits.sigmoid() if problem == "multi-label" else logits.softmax(dim=1)
