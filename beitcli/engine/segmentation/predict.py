"""`beit predict` of a segmenter: one mask per image, a PNG with a palette, with the values of the training masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from beitcli.config.predict import PredictConfig
from beitcli.data.loading.batches import Batch
from beitcli.data.transforms.segmentation import SegmentationEvalTransform
from beitcli.engine.events import Drawn, OnEvent, ignore, warn
from beitcli.engine.io.documents import documents
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.outputs import OutputFile, OutputNames, make_folder, require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.engine.segmentation.evaluate import label_mapping_of, open_segmenter
from beitcli.engine.segmentation.sliding_window import segment
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.pictures.canvas import Panel
from beitcli.pictures.segmentation import indexed, is_background, overlay
from beitcli.runtime.compute.device import choose_workers

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
    model, checkpoint, how = open_segmenter(config, checkpoint)
    warn(checkpoint.warnings, on_event)
    compute = checkpoint.compute(config.device, config.precision)
    rule, names = label_mapping_of(checkpoint), checkpoint.classes
    by_value = dict(zip(rule.to_values(np.arange(len(names), dtype=np.uint8)).tolist(), names, strict=True))
    model.to(compute.device)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), stdin=stdin, on_event=on_event)
    folder = Path(config.output)
    placed = OutputNames(folder, ".png", (OVERLAY,) if config.overlay else ())
    outputs = [placed.path(source.path(index)) for index in range(len(source))]
    beside = [_beside(output) for output in outputs] if config.overlay else []
    guarded, inputs = [*outputs, *beside], ProtectedInputs(config, source)
    log = UnfinishedOutputs(folder, config)
    require_writable_outputs(guarded, f"-o '{config.output}'", inputs, overwrite=config.overwrite, own=log.holds)
    make_folder(folder)
    transform = SegmentationEvalTransform(short_side=how.short_side, scales=how.scales, least=how.least)

    def said(batch: Batch, classes: torch.Tensor) -> dict[str, Any]:
        (index,) = batch.indices
        labels = classes.cpu().numpy().astype(np.uint8)
        values = rule.to_values(labels)
        OutputFile(outputs[index], log=log).save_png(indexed(values, is_background(by_value.get(0))))
        document: dict[str, Any] = {"output": str(outputs[index])}
        drawn = overlay(source.pixels(index), values, by_value) if config.overlay or config.preview else None
        if drawn is not None and config.overlay:
            OutputFile(beside[index], log=log).save_png(drawn)
            document["overlay"] = str(beside[index])
        if drawn is not None and config.preview:
            shown = ", ".join(f"{name} {share:.0%}" for name, share in _shares(labels, names).items())
            on_event(Drawn([Panel(drawn, source.path(index), (shown,))]))
        return document | {"classes": _shares(labels, names)}

    batches = segment(
        model, source, transform, how, Batching(compute, 1, choose_workers(config.workers, compute.device))
    )
    yield from documents(
        source,
        ((batch, [] if classes is None else [said(batch, classes)]) for batch, classes in batches),
        on_event,
        log.end,
    )


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.stem}{OVERLAY}.png")


def _shares(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    counts = np.bincount(labels.ravel(), minlength=len(names))
    return {names[label]: int(counts[label]) / labels.size for label in np.argsort(-counts) if counts[label]}
