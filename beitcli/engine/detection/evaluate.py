"""`beit eval` of a detector: COCO's average precision over the data set; boxes are in pixels of the original images."""

from __future__ import annotations

from dataclasses import dataclass

from beitcli.config.evaluate import EvalConfig
from beitcli.config.tasks.detect import TASK
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.detection import open_detection
from beitcli.data.sources.format import Request
from beitcli.engine.detection.inference import score
from beitcli.engine.detection.metrics import METRICS, AveragePrecision, require_pycocotools
from beitcli.engine.events import OnEvent, ignore, openings
from beitcli.engine.trainer.bad_images import Bad, refuse_many_bad
from beitcli.engine.trainer.evaluation import evaluated, join_evaluation, warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import load_detector
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.metric_text import none_of


@dataclass(frozen=True)
class DetectionMetrics(AveragePrecision):
    """Metrics over all classes, and the AP of each class by name."""

    ap_of_class: dict[str, float | None]


@dataclass(frozen=True)
class DetectionEvalReport(DetectionMetrics, Evaluated):
    """Report of a detector's evaluation."""


def evaluate(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore) -> DetectionEvalReport:
    """Evaluates a detector.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        DataError: No annotations, categories that the model does not have, no box at all, or too many bad images.
        UsageError: pycocotools is not installed.
    """
    require_pycocotools()
    model, checkpoint = load_detector(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    batching = join_evaluation(config, checkpoint, on_event)
    world, on_event = batching.compute.world, batching.on_event
    size = max(model.architecture.image_size)
    request = Request.of(config, role="eval", sample_size=size, on_progress=openings(on_event))
    outlines = model.detection.predicts_masks
    source = world.rank_zero_first(lambda: open_detection(config.data, request, outlines=outlines))
    left_out: list[Bad] = [(-1, path, reason) for path, reason in source.bad]
    refuse_many_bad(left_out, len(source) + len(left_out), config.max_bad, "Mend the annotations or raise --max-bad.")
    source = source.renamed(checkpoint.classes)
    if config.limit is not None and config.limit < len(source):
        source, left_out = source.subset(select_limit(source, config.limit, config.seed)), []
    if not any(len(source.boxes(index)) for index in range(len(source))):
        raise DataError(
            f"{none_of(len(source), 'image', source.name, 'has a box', 'has no box')}.", "Check the annotations."
        )
    scored = score(model.to(batching.compute.device), source, checkpoint.normalization, batching)
    bad = [*left_out, *scored.bad]
    warn_bad(config, bad, len(source) + len(left_out), on_event)
    metrics = {name: getattr(scored.metrics, name) for name in METRICS}
    of_class = dict(zip(checkpoint.classes, scored.metrics.of_class, strict=True))
    return evaluated(config, TASK, DetectionEvalReport, scored.images, bad, **metrics, ap_of_class=of_class)
