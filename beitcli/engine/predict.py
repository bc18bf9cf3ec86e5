"""`beit predict`: predictions of a finetuned model for its task."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

from beitcli.config.intensity import with_models_intensity
from beitcli.config.predict import PredictConfig
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, downloads, ignore
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import expect_finetuned, open_model
from beitcli.runtime.compute.device import Compute


def predict(
    config: PredictConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one document per image, in input order: `{"path", ...}`, depending on the task, or `{"path", "error"}`.

    Raises:
        DataError: After the last image, if some could not be read.
        StorageError: The model is not finetuned, so it predicts nothing.
    """
    checkpoint = open_model(config.model, downloads(on_event))
    config = with_models_intensity(config, checkpoint.settings)
    yield from expect_finetuned(checkpoint).run("predict", config, checkpoint, on_event, stdin)


def predict_images(
    config: PredictConfig, checkpoint: CheckpointHandle, model: Any, compute: Compute, source: Source
) -> Iterator[dict[str, Any]]:
    """Yields the documents of `predict` for opened images, from the checkpoint's model on its device.

    Raises:
        UsageError: The task's package has no `predictions`, so that it reads files only.
    """
    task = expect_finetuned(checkpoint)
    module = import_module(f"{task.engine}.predict")
    if not hasattr(module, "predictions"):
        raise UsageError(f"The task {task.name} predicts of files only.", "Call beitcli.predict(MODEL, paths).")
    yield from module.predictions(config, checkpoint, model, compute, source)
