"""`beit predict` of a detector: the objects of images, one document each, and pictures with their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.predict import PredictConfig
from beitcli.data.annotations.instance_masks import decoded
from beitcli.data.transforms.detection import FittedView
from beitcli.engine.detection.inference import detect
from beitcli.engine.detection.metrics import Found, require_pycocotools
from beitcli.engine.events import OnEvent, Progress, ignore, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.outputs import OutputNames, make_folder, save_png, spare_inputs
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import detector_of
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.pictures.boxes import with_boxes, with_masks
from beitcli.runtime.compute.device import choose_workers


def predict_boxes(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "detections": [{"label", "score", "box": [x0, y0, x1, y1]}, ...]}`, best first, boxes in pixels
    of the upright image; of Mask R-CNN each also `"mask": {"size": [H, W], "counts"}`, COCO's compressed runs. With
    `-o` also `"output"`, the picture. Or `{"path", "error"}`.

    Args:
        checkpoint: What `config.model` names.

    Raises:
        UsageError: `-o` would overwrite an input.
        DataError: After the last image, where some could not be read.
    """
    model, checkpoint = detector_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = checkpoint.compute(config.device, config.precision)
    warn(checkpoint.warnings, on_event)
    if model.head_name == "mask-rcnn":
        require_pycocotools()
    names, size = checkpoint.classes, model.architecture.image_size
    model.to(compute.device)
    source = open_inputs(config, sample_size=max(size), stdin=stdin, on_event=on_event)
    inputs = [source.path(index) for index in range(len(source))]
    outputs: list[Path] = []
    if config.output is not None:
        placed = OutputNames(Path(config.output), ".png")
        outputs = [placed.path(path) for path in inputs]
        spare_inputs(outputs, inputs, f"-o '{config.output}'")
        make_folder(Path(config.output))
    view = FittedView(size=size, mean=checkpoint.normalization[0])
    workers = choose_workers(config.workers, compute.device)
    done = bad = 0
    for batch, objects in detect(model, source, view, checkpoint.normalization, compute, config.batch_size, workers):
        documents: dict[int, dict[str, Any]] = {
            index: {"path": path, "error": reason} for index, path, reason in batch.bad
        }
        bad += len(documents)
        for index, each in zip(batch.indices, objects, strict=True):
            sure = _above(each, config.score_threshold)
            documents[index] = {"path": inputs[index], "detections": _told(sure, names)}
            if outputs:
                save_png(_drawn(source.pixels(index), sure, names), outputs[index])
                documents[index]["output"] = str(outputs[index])
        for index in sorted(documents):
            yield documents[index]
        done += len(documents)
        on_event(Progress("predict", done, len(source), "image"))
    if bad:
        raise DataError(f"{bad} of {len(source)} images cannot be read.", "Their lines say why.")


def _above(found: Found, threshold: float) -> Found:
    kept = found.scores >= threshold
    masks = None if found.masks is None else tuple(found.masks[place] for place in kept.nonzero()[0])
    return Found(found.boxes[kept], found.labels[kept], found.scores[kept], masks)


def _drawn(pixels: np.ndarray, found: Found, names: tuple[str, ...]) -> Image.Image:
    if found.masks is not None:
        pixels = with_masks(pixels, [decoded(runs) for runs in found.masks], found.labels)
    return with_boxes(pixels, found.boxes, found.labels, found.scores, names)


def _told(found: Found, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    told = [{"label": names[label], "score": score, "box": box} for label, score, box in rows]
    for document, runs in zip(told, found.masks or (), strict=False):
        document["mask"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return told
