"""`beit predict`: predictions of a finetuned model for its task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from beitcli.config.intensity import with_models_intensity
from beitcli.config.predict import PredictConfig
from beitcli.engine.events import OnEvent, downloads, ignore
from beitcli.models.checkpoints.open import expect_finetuned, open_model


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
