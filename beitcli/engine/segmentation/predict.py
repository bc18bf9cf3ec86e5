"""`beit predict` of a segmenter: one mask per image, a PNG with a palette, with the values of the training masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from beitcli.config.predict import PredictConfig
from beitcli.data.loading.batches import Batch
from beitcli.data.sources.base import Source
from beitcli.data.transforms.segmentation import SegmentationEvalTransform
from beitcli.engine.events import OnEvent, ignore, warn
from beitcli.engine.io.documents import documents
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.outputs import OutputFile, OutputNames, make_folder, require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.segmentation.evaluate import label_mapping_of, open_segmenter, windows_of
from beitcli.engine.segmentation.sliding_window import segment
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.timm_dense import AnySegmenter
from beitcli.pictures.segmentation import indexed, overlay
from beitcli.runtime.compute.device import Compute, choose_workers

OVERLAY = "-overlay"


def predict(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "output", "classes": {name: share of the pixels}}`, or `{"path", "error"}`.

    With `--overlay` also `"overlay"`. Classes are sorted by share, largest first; those without a pixel are left out.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        UsageError: No `-o`, or it would overwrite an input.
        DataError: After the last image, if some could not be read.
    """
    if config.output is None:
        raise UsageError(f"'{config.model}' is a segmenter: it writes masks.", "Give a folder for them: -o DIR.")
    model, checkpoint, _ = open_segmenter(config, checkpoint)
    warn(checkpoint.warnings, on_event)
    compute = checkpoint.compute(config.device, config.precision)
    model.to(compute.device)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    yield from predictions(config, checkpoint, model, compute, source, on_event)


def predictions(
    config: PredictConfig,
    checkpoint: CheckpointHandle,
    model: AnySegmenter,
    compute: Compute,
    source: Source,
    on_event: OnEvent = ignore,
) -> Iterator[dict[str, Any]]:
    """Yields the documents of `predict` for opened images, from the checkpoint's model on its device.

    Without `config.output` nothing is written, and a document has the `mask`, (H, W) uint8 as it would be in the file.
    """
    how, rule = windows_of(config, checkpoint, model), label_mapping_of(checkpoint)
    files = None if config.output is None else _MaskFiles(config, source, Path(config.output))
    transform = SegmentationEvalTransform(short_side=how.short_side, scales=how.scales, least=how.least)

    def said(batch: Batch, classes: torch.Tensor) -> dict[str, Any]:
        (index,) = batch.indices
        labels = classes.cpu().numpy().astype(np.uint8)
        values = rule.to_values(labels)
        document = {"mask": values} if files is None else files.write(index, values)
        return document | {"classes": _shares(labels, checkpoint.classes)}

    batches = segment(
        model, source, transform, how, Batching(compute, 1, choose_workers(config.workers, compute.device))
    )
    yield from documents(
        source, ((batch, [] if classes is None else [said(batch, classes)]) for batch, classes in batches), on_event
    )


class _MaskFiles:
    """The files of a segmenter's masks, and of the overlays beside them.

    Raises:
        UsageError: One exists, or is an input.
    """

    def __init__(self, config: PredictConfig, source: Source, folder: Path) -> None:
        self.source = source
        placed = OutputNames(folder, ".png", (OVERLAY,) if config.overlay else ())
        self.masks = [placed.path(source.path(index)) for index in range(len(source))]
        self.overlays = [_beside(mask) for mask in self.masks] if config.overlay else []
        guarded, inputs = [*self.masks, *self.overlays], ProtectedInputs(config, source)
        require_writable_outputs(guarded, f"-o '{config.output}'", inputs, overwrite=config.overwrite)
        make_folder(folder)

    def write(self, index: int, values: np.ndarray) -> dict[str, Any]:
        """Writes the files of an image, and returns their names."""
        OutputFile(self.masks[index]).save_png(indexed(values))
        named = {"output": str(self.masks[index])}
        if self.overlays:
            OutputFile(self.overlays[index]).save_png(overlay(self.source.pixels(index), values))
            named["overlay"] = str(self.overlays[index])
        return named


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.stem}{OVERLAY}.png")


def _shares(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    counts = np.bincount(labels.ravel(), minlength=len(names))
    return {names[label]: int(counts[label]) / labels.size for label in np.argsort(-counts) if counts[label]}
