"""mIoU and pixel accuracies, from one (classes, classes) int64 matrix that adds up over images, batches and ranks.

IoU of a class = intersection / (labelled + predicted - intersection)        both over the whole data set
mIoU = mean over the classes that are labelled or predicted anywhere         like mmseg's nanmean
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ConfusionMetrics:
    """Fractions in 0-1; None if a class is neither labelled nor predicted.

    Attributes:
        mean_accuracy: Mean over the labelled classes of the share of their pixels that is predicted correctly.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: tuple[float | None, ...]


def confusion(predicted: torch.Tensor, targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Returns the confusion matrix in pixels, (classes, classes) int64: rows labelled, columns predicted.

    Args:
        predicted: Integers in [0, classes).
        targets: Of the same shape; pixels with another value than a class are ignored.
    """
    counted = targets < classes
    pairs = targets[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def metrics_of(counts: torch.Tensor) -> ConfusionMetrics:
    """Returns the metrics of a (classes, classes) int64 confusion matrix, with a single division in fp64."""
    hits, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = hits.double() / (labelled + predicted - hits)
    found = hits.double() / labelled
    pixels = int(labelled.sum())
    return ConfusionMetrics(
        miou=_mean(iou),
        pixel_accuracy=int(hits.sum()) / pixels if pixels else 0.0,
        mean_accuracy=_mean(found),
        iou=tuple(None if value != value else value for value in iou.tolist()),
    )


def _mean(values: torch.Tensor) -> float:
    """Mean over the values that are not NaN; 0 if there are none."""
    there = values[~values.isnan()]
    return float(there.mean()) if len(there) else 0.0
