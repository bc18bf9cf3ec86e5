"""The fields that reports have in common.

A dataclass takes the fields of its last base first, so that a report's own stand where its JSON has them:

    class SegmentReport(Timed, SegmentationMetrics, Finetuned)      run ... measured_on, miou ... iou, seconds ...
    class SegmentationEvalReport(SegmentationMetrics, Evaluated)    model ... bad, miou ... iou
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finetuned:
    """What was made; the metrics are of `images` images of `measured_on`."""

    run: str
    checkpoint: str
    task: str
    step: int
    epoch: float
    images_seen: int
    classes: int
    images: int
    measured_on: str


@dataclass(frozen=True)
class Timed:
    """The end of a training's report.

    Attributes:
        further: Metrics that have no field of their own.
    """

    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """What was measured; `bad` images are left out of `images`."""

    model: str
    data: str
    task: str
    protocol: str
    images: int
    bad: int
