"""evaluation.json of a detector: what it finds of each class, and the images with the most mistakes, drawn.

right    a box with a score of at least SCORE and an IoU of at least OVERLAP with an object of its class; the boxes
         of an image take their objects in the order of their scores, each the one it covers best
F1       2 right / (boxes + objects); the images with the least are the worst
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from beitcli.config.fields import settings_of
from beitcli.config.predict import PredictConfig
from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.sources.detection import DetectionSource
from beitcli.engine.detection.metrics import DetectionMetrics, Detections
from beitcli.engine.trainer.details import pictures_of, small_picture
from beitcli.pictures.boxes import draw_bounding_boxes

SCORE: float = settings_of(PredictConfig)["score_threshold"].default  # what `predict` shows
OVERLAP = 0.5
_SHOWN = 12  # images at most, each twice
_SIDE = 400  # pixels


def detection_details(
    classes: Sequence[str],
    metrics: DetectionMetrics,
    found: Sequence[tuple[int, Detections]],
    source: DetectionSource,
) -> dict[str, Any]:
    """Returns objects, boxes and right boxes of each class, its AP, and the worst images with their boxes drawn.

    Args:
        found: (index in the source, detections) of the images that were measured.
    """
    counts = np.zeros((3, len(classes)), np.int64)  # objects, predicted, hits
    images = []
    for index, detections in found:
        marked, sure = source.boxes(index), _sure(detections)
        right, ignored = match(marked, sure)
        objects, boxes = marked.labels[~marked.crowd], sure.labels[~ignored]
        for row, labels in enumerate((objects, boxes, sure.labels[right])):
            counts[row] += np.bincount(labels, minlength=len(classes))
        hits = int(right.sum())
        wrong = len(boxes) - hits
        if hits < len(objects) or wrong:
            facts = {"objects": len(objects), "hits": hits, "wrong": wrong}
            images.append((2 * hits / (len(objects) + len(boxes)), hits - len(objects) - wrong, index, facts))
    images.sort(key=lambda each: each[:3])
    sure_of = {index: _sure(detections) for index, detections in found}

    def draw(index: int, image: Image.Image) -> dict[str, str]:
        pixels, marked, sure = np.asarray(image.convert("RGB")), source.boxes(index), sure_of[index]
        there = ~marked.crowd
        truth = draw_bounding_boxes(pixels, marked.boxes[there], marked.labels[there], None, classes)
        guess = draw_bounding_boxes(pixels, sure.boxes, sure.labels, sure.scores, classes)
        return {"labelled": small_picture(truth, _SIDE), "picture": small_picture(guess, _SIDE)}

    chosen = ((index, facts) for *_, index, facts in images[: 2 * _SHOWN])
    return {
        "task": "detect",
        "classes": list(classes),
        "score_threshold": SCORE,
        "iou_threshold": OVERLAP,
        "ap": list(metrics.of_class),
        **dict(zip(("objects", "predicted", "hits"), counts.tolist(), strict=True)),
        "worst": pictures_of(source, chosen, draw, _SHOWN),
    }


def match(marked: BoxLabels, found: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Returns which detections are right and which count for nothing, as they lie in a crowd; (n,) bool each.

    Args:
        found: Best first.
    """
    right, ignored = np.zeros(len(found), bool), np.zeros(len(found), bool)
    if not len(found) or not len(marked):
        return right, ignored
    boxes, objects = torch.from_numpy(found.boxes).float(), torch.from_numpy(marked.boxes).float()
    same = found.labels[:, None] == marked.labels[None]
    overlaps = np.where(same & ~marked.crowd, box_iou(boxes, objects).numpy(), 0.0)
    for place in range(len(found)):
        best = int(overlaps[place].argmax())
        if overlaps[place, best] >= OVERLAP:
            right[place] = True
            overlaps[:, best] = 0.0
    covered = np.where(same & marked.crowd, _share_within(boxes, objects), 0.0).max(axis=1) >= OVERLAP
    return right, covered & ~right


def _share_within(boxes: torch.Tensor, crowds: torch.Tensor) -> np.ndarray:
    """Returns the share of each box that lies in each crowd, (n, m): COCO's IoU with a crowd."""
    least, most = torch.maximum(boxes[:, None, :2], crowds[:, :2]), torch.minimum(boxes[:, None, 2:], crowds[:, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1, keepdim=True)
    return ((most - least).clamp(min=0).prod(dim=2) / areas.clamp(min=1e-9)).numpy()


def _sure(found: Detections) -> Detections:
    kept = found.scores >= SCORE
    return Detections(found.boxes[kept], found.labels[kept], found.scores[kept])
