"""Detection data before training: opens it, checks the boxes of every image, counts the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.detection import DetectionSource, open_detection
from beitcli.data.sources.format import Request
from beitcli.engine.events import Note, OnEvent, Progress, Tabulated, Warned, openings
from beitcli.engine.trainer.bad_images import Bad, left_out_text, refuse_many_bad
from beitcli.engine.trainer.data import hold_out_annotated, val_name, validation_data
from beitcli.engine.trainer.finetuning import FinetuneData
from beitcli.errors import DataError
from beitcli.runtime.metric_text import counted, none_of

_MEND = "Mend the annotations or raise --max-bad."


@dataclass(frozen=True)
class DetectionData(FinetuneData[DetectionSource]):
    """Training and validation images of a run.

    Attributes:
        most: Maximum number of boxes of a training image.
        mean_boxes: Their mean number.
    """

    most: int
    mean_boxes: float


def open_detection_data(
    config: FinetuneConfig, class_names: tuple[str, ...], outlines: bool, size: int, on_event: OnEvent
) -> DetectionData:
    """Opens and checks all data of a run before its first step.

    Args:
        outlines: Whether the objects' outlines are needed, too.
        class_names: Class names of a resumed run; empty to take those of the data.
        size: Side of the images of `sample`, in pixels.

    Raises:
        DataError: Too many unusable images, no box in any of them, or categories that differ.
    """
    request = Request.of(config, role="train", sample_size=size, on_progress=openings(on_event))
    source = _opened(config.data, request, outlines, on_event)
    bad = _left_out(source, config.max_bad)
    classes = class_names or source.names
    training = source.renamed(classes)
    if config.limit is not None and config.limit < len(training):
        training = training.subset(np.sort(select_limit(training, config.limit, config.seed)))
    own = validation_data(config, source)
    is_apart = True
    if own is not None:
        references, split, on = own
        measured = _opened(references, replace(request, split=split, role="eval"), outlines, on_event)
        left_out = _left_out(measured, config.max_bad)
        if left_out:
            on_event(Warned(left_out_text(left_out, "measured image")))
        measured = measured.renamed(classes, val_name(config))
    else:
        training, measured, on, is_apart = hold_out_annotated(training, training.subset, config)
    boxes, images, most = _counted(training, len(classes), "boxes", on_event)
    _require_boxes(boxes, training, on_event)
    mean_boxes = float(boxes.sum()) / len(training)
    on_event(_table(boxes, images, len(training), classes))
    return DetectionData(
        training,
        measured,
        classes,
        tuple(bad),
        on,
        most,
        mean_boxes,
        is_apart=is_apart,
        has_own_validation=own is not None,
    )


def _opened(references: Sequence[str], request: Request, outlines: bool, on_event: OnEvent) -> DetectionSource:
    source = open_detection(references, request, outlines=outlines)
    images, classes = counted(len(source), "image"), f"{len(source.names):,} classes"
    on_event(Note(f"Data: {images} with annotations of '{source.name}', {classes}"))
    return source


def _left_out(source: DetectionSource, max_bad: float) -> list[Bad]:
    """Returns the images that their annotations make unusable. Raises DataError if they are too many."""
    bad = [(-1, path, reason) for path, reason in source.bad]
    refuse_many_bad(bad, len(source) + len(bad), max_bad, _MEND)
    return bad


def _counted(source: DetectionSource, classes: int, what: str, on_event: OnEvent) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns boxes (no crowds) and images per class, (classes,) int64 each, and the most boxes of an image."""
    boxes, images, most = np.zeros(classes, np.int64), np.zeros(classes, np.int64), 0
    for index in range(len(source)):
        marked = source.boxes(index)
        counts = np.bincount(marked.labels[~marked.crowd], minlength=classes)
        boxes += counts
        images += counts > 0
        most = max(most, int(counts.sum()))
        if index % 1024 == 1023 or index + 1 == len(source):
            on_event(Progress(what, index + 1, len(source), "image"))
    return boxes, images, most


def _require_boxes(boxes: np.ndarray, source: DetectionSource, on_event: OnEvent) -> None:
    if not boxes.sum():
        raise DataError(
            f"{none_of(len(source), 'training image', source.name, 'has a box', 'has no box')}.",
            "Check the annotations; crowds (iscrowd) are not learned from.",
        )
    empty = [name for name, number in zip(source.names, boxes.tolist(), strict=True) if not number]
    if empty:
        on_event(Warned(f"{len(empty)} of {len(boxes)} classes have no box to learn from, the first: '{empty[0]}'."))


def _table(boxes: np.ndarray, images: np.ndarray, number: int, classes: tuple[str, ...]) -> Tabulated:
    total = int(boxes.sum())
    rows = tuple((name, int(boxes[label]), int(images[label])) for label, name in enumerate(classes))
    return Tabulated(f"{total:,} boxes of {number:,} training images", ("class", "boxes", "images"), rows)
