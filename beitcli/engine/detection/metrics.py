"""Average precision (AP) by pycocotools, as on COCO: mean over ten IoU thresholds (0.5 to 0.95), then over classes.

Objects of an image are matched to its 100 best detections; detections of a crowd count neither for nor against. Small
is below 32 x 32 pixels of area, large from 96 x 96 on. A metric without an object to find is None.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.annotations.instance_masks import Rle, area_of
from beitcli.errors import UsageError
from beitcli.runtime.extras import install_line


@dataclass(frozen=True)
class Detections:
    """Detections in one image, best first.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1 in pixels of the upright image.
        labels: (n,) int64.
        scores: (n,) float32 in 0-1.
        masks: Run lengths of each mask, in the image's own size; None if the head predicts no masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's average precision, fractions in 0-1; None if there is nothing to find.

    Attributes:
        mask_ap: This and the next two are of masks in place of boxes; None if no masks are predicted.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_ap75: float | None


@dataclass(frozen=True)
class DetectionMetrics(AveragePrecision):
    """Metrics over all classes, and the AP of each class in label order."""

    of_class: tuple[float | None, ...]


METRICS = tuple(each.name for each in fields(AveragePrecision))


def require_pycocotools() -> None:
    """Raises UsageError if pycocotools, which computes the metrics, is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise UsageError(
            "Detection is measured by the library pycocotools, which is not installed.",
            f"Install it: {install_line('detect')}",
        ) from None


def average_precision(marked: Sequence[BoxLabels], found: Sequence[Detections], classes: int) -> DetectionMetrics:
    """Returns the metrics of detections over images; of masks too, if all detections have them.

    Args:
        marked: Annotated objects of each image.
        found: Detections of each image, in the same order.
    """
    precision, stats = _evaluated(marked, found, classes, "bbox")
    of_masks: list[float | None] = [None] * 3
    if found and all(each.masks is not None for each in found):
        of_masks = _evaluated(marked, found, classes, "segm")[1][:3]
    metrics: dict[str, Any] = dict(zip(METRICS, (*stats, *of_masks), strict=True))
    return DetectionMetrics(**metrics, of_class=tuple(_mean(precision[:, :, label]) for label in range(classes)))


def _evaluated(
    marked: Sequence[BoxLabels], found: Sequence[Detections], classes: int, kind: str
) -> tuple[np.ndarray, list[float | None]]:
    """Returns precision (IoU thresholds, recalls, classes), -1 if undefined, and the six metrics over all classes."""
    from pycocotools.cocoeval import COCOeval

    images = [{"id": number, "height": each.size[0], "width": each.size[1]} for number, each in enumerate(marked)]
    categories = [{"id": label} for label in range(classes)]
    masks = kind == "segm"
    truth = [_annotation(image, each, place, masks) for image, each in enumerate(marked) for place in range(len(each))]
    guesses = [_guess(image, each, place, masks) for image, each in enumerate(found) for place in range(len(each))]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_indexed(images, categories, truth), _indexed(images, categories, guesses), iouType=kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = [None if value < 0 else value for value in evaluation.stats[:6].tolist()]
    return evaluation.eval["precision"][:, :, :, 0, -1], stats


def _annotation(image: int, marked: BoxLabels, place: int, masks: bool) -> dict[str, Any]:
    outline = marked.outlines[place].runs(marked.size) if masks and marked.outlines is not None else None
    return {
        "image_id": image,
        "category_id": int(marked.labels[place]),
        "bbox": _corner_and_sides(marked.boxes[place]),
        "area": float(marked.areas[place]),
        "iscrowd": int(marked.crowd[place]),
        "segmentation": outline,
    }


def _guess(image: int, found: Detections, place: int, masks: bool) -> dict[str, Any]:
    box = _corner_and_sides(found.boxes[place])
    runs = found.masks[place] if masks and found.masks is not None else None
    return {
        "image_id": image,
        "category_id": int(found.labels[place]),
        "bbox": box,
        "area": box[2] * box[3] if runs is None else area_of(runs),
        "segmentation": runs,
        "iscrowd": 0,
        "score": float(found.scores[place]),
    }


def _corner_and_sides(box: np.ndarray) -> list[float]:
    left, upper, right, lower = box.tolist()
    return [left, upper, right - left, lower - upper]


def _indexed(images: list[dict[str, Any]], categories: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Any:
    """Returns them indexed by pycocotools. IDs start at 1: it takes an object of ID 0 for unmatched."""
    from pycocotools.coco import COCO

    made = COCO()
    numbered = [{"id": number, **each} for number, each in enumerate(annotations, start=1)]
    made.dataset = {"images": images, "categories": categories, "annotations": numbered}
    made.createIndex()
    return made


def _mean(precision: np.ndarray) -> float | None:
    there = precision[precision > -1]
    return float(there.mean()) if len(there) else None
