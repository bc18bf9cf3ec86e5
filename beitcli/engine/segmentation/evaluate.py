"""`beit eval` of a segmenter: mIoU over the data set by sliding window, on images resized as in training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from beitcli.config.evaluate import EvalConfig
from beitcli.config.predict import PredictConfig
from beitcli.config.tasks.segment import TASK
from beitcli.data.annotations.label_maps import LabelMapping
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.format import Request
from beitcli.data.sources.segmentation import open_segmentation
from beitcli.engine.events import OnEvent, ignore, openings
from beitcli.engine.segmentation.sliding_window import SlidingWindow, count, sliding
from beitcli.engine.trainer.evaluation import evaluated, join_evaluation, warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.models.checkpoints.build import load_segmenter
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.timm_dense import AnySegmenter

_ADE20K = 150  # number of its classes, from 1 in its masks; 0 is ignored


@dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics of a segmenter, fractions in 0-1.

    Attributes:
        iou: By class name; None if a class is neither labelled nor predicted.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float | None]


@dataclass(frozen=True)
class SegmentationEvalReport(SegmentationMetrics, Evaluated):
    """Report of a segmenter's evaluation."""


def open_segmenter(
    config: EvalConfig | PredictConfig, checkpoint: CheckpointHandle
) -> tuple[AnySegmenter, CheckpointHandle, SlidingWindow]:
    """Returns the model at the size of its windows, the checkpoint, and the settings of inference."""
    window = (config.window, config.window) if config.window else config.size
    model, checkpoint = load_segmenter(checkpoint, window)
    checkpoint = checkpoint.normalized(config.normalization)
    return model, checkpoint, windows_of(config, checkpoint, model)


def windows_of(config: EvalConfig | PredictConfig, checkpoint: CheckpointHandle, model: AnySegmenter) -> SlidingWindow:
    """Returns the settings of inference of an opened model."""
    trained = int(checkpoint.settings.get("short_side", min(checkpoint.architecture.image_size)))
    return sliding(
        model.architecture.image_size,
        normalization=checkpoint.normalization,
        short_side=trained if config.short_side is None else config.short_side,
        stride=config.stride,
        multi_scale=config.multi_scale,
        flip=config.flip,
        windows_at_once=config.batch_size,
    )


def label_mapping_of(
    checkpoint: CheckpointHandle, ignore_index: int | None = None, reduce_zero_label: bool = False
) -> LabelMapping:
    """Returns the label mapping of training, unless overridden.

    What another program does not state is 255, and for 150 classes that they are those of ADE20K.
    """
    classes, stated = checkpoint.outputs, checkpoint.segmenter
    trained = checkpoint.settings
    if not trained:
        reduced = stated.reduce_zero_label if stated else None
        trained = {
            "ignore_index": stated.ignore_index if stated else 255,
            "reduce_zero_label": classes == _ADE20K if reduced is None else reduced,
        }
    return LabelMapping(
        ignore_index=trained["ignore_index"] if ignore_index is None else ignore_index,
        reduce_zero_label=trained["reduce_zero_label"] or reduce_zero_label,
        classes=classes,
    )


def evaluate(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore) -> SegmentationEvalReport:
    """Evaluates a segmenter.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        DataError: No masks, or too many unusable images or masks.
    """
    model, checkpoint, how = open_segmenter(config, checkpoint)
    batching = join_evaluation(config, checkpoint, on_event)
    world, on_event = batching.compute.world, batching.on_event
    size = max(model.architecture.image_size)
    request = Request.of(config, role="eval", sample_size=size, on_progress=openings(on_event))
    rule = label_mapping_of(checkpoint, config.ignore_index, config.reduce_zero_label)
    source = world.rank_zero_first(lambda: open_segmentation(config.data, rule, request))
    missing = [(-1, path, "it has no mask") for path in source.missing]
    if config.limit is not None and config.limit < len(source):
        source, missing = source.subset(select_limit(source, config.limit, config.seed)), []
    counts = count(model.to(batching.compute.device), source, how, replace(batching, batch_size=1))
    bad = [*missing, *counts.bad]
    warn_bad(config, bad, len(source) + len(missing), on_event)
    metrics = counts.metrics
    return evaluated(
        config,
        TASK,
        SegmentationEvalReport,
        counts.images,
        bad,
        miou=metrics.miou,
        pixel_accuracy=metrics.pixel_accuracy,
        mean_accuracy=metrics.mean_accuracy,
        iou=dict(zip(checkpoint.classes, metrics.iou, strict=True)),
    )
