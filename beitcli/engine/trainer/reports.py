"""Common fields of reports.

A dataclass takes the fields of its last base class first, so a task's are between the common ones, as in the JSON:

    class SegmentReport(Timed, SegmentationMetrics, Finetuned)      run ... measured_on, miou ... iou, seconds ...
    class SegmentationEvalReport(SegmentationMetrics, Evaluated)    model ... bad, miou ... iou
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finetuned:
    """First fields of a finetuning report; the metrics are of `images` images of `measured_on`."""

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
    """Last fields of a training report.

    Attributes:
        seconds: Spent on training.
        measuring_seconds: Spent on the images measured on, beside `seconds`.
        total_seconds: Of the whole run, all attempts together: the sum of its parts.
        further: Metrics that have no field of their own.
    """

    images_per_second: float
    seconds: float
    measuring_seconds: float
    total_seconds: float
    further: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """First fields of an evaluation report; `images` does not count the `bad` ones."""

    model: str
    data: str
    task: str
    protocol: str
    images: int
    bad: int
