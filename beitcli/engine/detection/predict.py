"""`beit predict` of a detector: one document per image with its objects, and pictures with their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from beitcli.config.predict import PredictConfig
from beitcli.data.annotations.instance_masks import decoded
from beitcli.data.sources.base import Source
from beitcli.data.transforms.detection import DetectionEvalTransform
from beitcli.engine.detection.inference import detect
from beitcli.engine.detection.metrics import Detections, require_pycocotools
from beitcli.engine.events import Drawn, OnEvent, ignore
from beitcli.engine.io.documents import documents
from beitcli.engine.io.output_paths import make_folder
from beitcli.engine.io.outputs import OutputFile
from beitcli.engine.io.prediction import open_prediction
from beitcli.engine.io.prediction_outputs import PredictedPictures
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.checkpoints.build import load_detector
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.timm_dense import AnyDetector
from beitcli.pictures.boxes import draw_bounding_boxes, draw_segmentation_masks
from beitcli.pictures.canvas import Panel
from beitcli.runtime.compute.device import Compute, choose_workers


def predict(
    config: PredictConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"path", "detections": [{"label", "score", "box": [x0, y0, x1, y1]}, ...]}`, or `{"path", "error"}`.

    Best first, boxes in pixels of the upright image. Heads with masks add `"mask": {"size": [H, W], "counts"}` to each,
    COCO's compressed run lengths. `-o` adds `"output"`, the picture.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        UsageError: `-o` would overwrite an input.
        DataError: After the last image, if some could not be read.
    """
    model, checkpoint = load_detector(checkpoint, config.size)
    checkpoint, compute, source = open_prediction(config, checkpoint, model, on_event, stdin)
    yield from predictions(config, checkpoint, model, compute, source, on_event)


def predictions(
    config: PredictConfig,
    checkpoint: CheckpointHandle,
    model: AnyDetector,
    compute: Compute,
    source: Source,
    on_event: OnEvent = ignore,
) -> Iterator[dict[str, Any]]:
    """Yields the documents of `predict` for opened images, from the checkpoint's model on its device."""
    if model.detection.predicts_masks:
        require_pycocotools()
    names, size = checkpoint.classes, model.architecture.image_size
    files = None
    if config.output is not None:
        files = PredictedPictures.of(config, source)
        make_folder(Path(config.output))
    transform = DetectionEvalTransform(size=size, mean=checkpoint.normalization[0])

    def said(index: int, objects: Detections) -> dict[str, Any]:
        sure = _above(objects, config.score_threshold)
        document: dict[str, Any] = {"detections": _told(sure, names)}
        drawn = _drawn(source.pixels(index), sure, names) if files is not None or config.preview else None
        if drawn is not None and files is not None:
            OutputFile(files.pictures[index], log=files.log).save_png(drawn)
            document["output"] = str(files.pictures[index])
        if drawn is not None and config.preview:
            shown = [f"{each['label']} {each['score']:.0%}" for each in document["detections"]]
            on_event(Drawn([Panel(drawn, source.path(index), (", ".join(shown) or "nothing",))]))
        return document

    batching = Batching(compute, config.batch_size, choose_workers(config.workers, compute.device))
    batches = detect(model, source, transform, checkpoint.normalization, batching)
    told = ((batch, map(said, batch.indices, objects)) for batch, objects in batches)
    yield from documents(source, told, on_event, files.log.end if files is not None else None)


def _above(found: Detections, threshold: float) -> Detections:
    kept = found.scores >= threshold
    masks = None if found.masks is None else tuple(found.masks[place] for place in kept.nonzero()[0])
    return Detections(found.boxes[kept], found.labels[kept], found.scores[kept], masks)


def _drawn(pixels: np.ndarray, found: Detections, names: tuple[str, ...]) -> Image.Image:
    if found.masks is not None:
        pixels = draw_segmentation_masks(pixels, [decoded(runs) for runs in found.masks], found.labels)
    return draw_bounding_boxes(pixels, found.boxes, found.labels, found.scores, names)


def _told(found: Detections, names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    told = [{"label": names[label], "score": score, "box": box} for label, score, box in rows]
    for document, runs in zip(told, found.masks or (), strict=False):
        document["mask"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    return told
