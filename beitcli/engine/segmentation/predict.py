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
from beitcli.engine.events import Drawn, OnEvent, ignore
from beitcli.engine.io.documents import documents
from beitcli.engine.io.output_paths import make_folder
from beitcli.engine.io.outputs import OutputFile
from beitcli.engine.io.prediction import open_prediction
from beitcli.engine.io.prediction_outputs import PredictedPictures
from beitcli.engine.segmentation.evaluate import label_mapping_of, open_segmenter, windows_of
from beitcli.engine.segmentation.sliding_window import segment
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.timm_dense import AnySegmenter
from beitcli.pictures.canvas import Panel
from beitcli.pictures.segmentation import indexed, is_background, overlay
from beitcli.runtime.compute.device import Compute, choose_workers


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
    model, checkpoint, _ = open_segmenter(config, checkpoint)
    checkpoint, compute, source = open_prediction(config, checkpoint, model, on_event, stdin)
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
    how, rule, names = windows_of(config, checkpoint, model), label_mapping_of(checkpoint), checkpoint.classes
    by_value = rule.names_of_values(names)
    files = None if config.output is None else _MaskFiles(config, source, Path(config.output), by_value)
    transform = SegmentationEvalTransform(short_side=how.short_side, scales=how.scales, least=how.least)

    def said(batch: Batch, classes: torch.Tensor) -> dict[str, Any]:
        (index,) = batch.indices
        labels = classes.cpu().numpy().astype(np.uint8)
        values = rule.to_values(labels)
        document: dict[str, Any] = {"mask": values} if files is None else files.write(index, values)
        if config.preview:
            shown = ", ".join(f"{name} {share:.0%}" for name, share in _shares(labels, names).items())
            drawn = overlay(source.pixels(index), values, by_value)
            on_event(Drawn([Panel(drawn, source.path(index), (shown,))]))
        return document | {"classes": _shares(labels, names)}

    batches = segment(
        model, source, transform, how, Batching(compute, 1, choose_workers(config.workers, compute.device))
    )
    yield from documents(
        source,
        ((batch, [] if classes is None else [said(batch, classes)]) for batch, classes in batches),
        on_event,
        files.files.log.end if files is not None else None,
    )


class _MaskFiles:
    """The files of a segmenter's masks, and of the overlays beside them.

    Raises:
        UsageError: One exists, or is an input.
    """

    def __init__(self, config: PredictConfig, source: Source, folder: Path, by_value: dict[int, str]) -> None:
        self.source, self.by_value = source, by_value
        self.files = PredictedPictures.of(config, source)
        make_folder(folder)

    def write(self, index: int, values: np.ndarray) -> dict[str, Any]:
        """Writes the files of an image, and returns their names."""
        picture, path = indexed(values, is_background(self.by_value.get(0))), self.files.pictures[index]
        OutputFile(path, log=self.files.log).save_png(picture)
        named = {"output": str(path)}
        if self.files.overlays:
            drawn, beside = overlay(self.source.pixels(index), values, self.by_value), self.files.overlays[index]
            OutputFile(beside, log=self.files.log).save_png(drawn)
            named["overlay"] = str(beside)
        return named


def _shares(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    counts = np.bincount(labels.ravel(), minlength=len(names))
    return {names[label]: int(counts[label]) / labels.size for label in np.argsort(-counts) if counts[label]}
