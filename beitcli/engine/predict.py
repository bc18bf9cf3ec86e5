"""`beit predict`: what a finetuned model says of images, by its kind. A new kind is a new file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from beitcli.config.predict import PredictConfig
from beitcli.engine.classification.predict import predict_classes
from beitcli.engine.detection.predict import predict_boxes
from beitcli.engine.events import OnEvent, downloads, ignore
from beitcli.engine.segmentation.predict import predict_masks
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import expect, open_model

Documents = Iterator[dict[str, Any]]
_KINDS: dict[str, Callable[[PredictConfig, CheckpointHandle, OnEvent, BinaryIO | None], Documents]] = {
    "classifier": predict_classes,
    "segmenter": predict_masks,
    "detector": predict_boxes,
}


def predict(config: PredictConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None) -> Documents:
    """Yields a document an image, in input order: `{"path", ...}` as its kind has it, or `{"path", "error"}`.

    Raises:
        DataError: After the last image, where some could not be read.
        StorageError: The model is of a kind that predicts nothing.
    """
    checkpoint = open_model(config.model, downloads(on_event))
    expect(checkpoint, *_KINDS)
    yield from _KINDS[checkpoint.kind](config, checkpoint, on_event, stdin)
