"""Opening of `beit predict` for any task: device, warnings of the checkpoint, images."""

from __future__ import annotations

from typing import Any, BinaryIO

from beitcli.config.predict import PredictConfig
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import Compute


def open_prediction(
    config: PredictConfig, checkpoint: CheckpointHandle, model: Any, on_event: OnEvent, stdin: BinaryIO | None
) -> tuple[CheckpointHandle, Compute, Source]:
    """Moves the model to its device, emits the warnings of the checkpoint, and opens INPUT.

    Args:
        model: A network with an `architecture`; it is moved in place.

    Returns:
        The checkpoint with the normalization of `config`, the device, and the images.
    """
    checkpoint = checkpoint.normalized(config.normalization)
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    model.to(compute.device)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    return checkpoint, compute, source
