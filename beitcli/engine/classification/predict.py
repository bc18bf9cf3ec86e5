"""`beit predict` of a classifier: the classes of images, one document each, in input order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from beitcli.config.predict import PredictConfig
from beitcli.engine.classification.evaluate import class_names, classify
from beitcli.engine.events import OnEvent, Progress, ignore, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import classifier_of, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers


def predict_classes(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "label", "score", "top": [[label, score], ...]}`, or `{"path", "error"}`.

    Args:
        checkpoint: What `config.model` names.

    Raises:
        DataError: After the last image, where some could not be read.
    """
    model, checkpoint = classifier_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    model.to(compute.device)
    classes = class_names(checkpoint)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    bad, done = 0, 0
    workers = choose_workers(config.workers, compute.device)
    for batch, logits in classify(model, source, preprocessing(checkpoint, model), compute, config.batch_size, workers):
        documents: dict[int, dict[str, Any]] = {
            index: {"path": path, "error": reason} for index, path, reason in batch.bad
        }
        bad += len(documents)
        if len(batch):
            scores, columns = logits.softmax(dim=1).topk(min(config.top, len(classes)), dim=1)
            for index, row, places in zip(batch.indices, scores.tolist(), columns.tolist(), strict=True):
                top = [[classes[place], value] for place, value in zip(places, row, strict=True)]
                documents[index] = {"path": source.path(index), "label": top[0][0], "score": top[0][1], "top": top}
        for index in sorted(documents):
            yield documents[index]
        done += len(documents)
        on_event(Progress("predict", done, len(source), "image"))
    if bad:
        raise DataError(f"{bad} of {len(source)} images cannot be read.", "Their lines say why.")
