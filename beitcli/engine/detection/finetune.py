"""`finetune --task detect`: a detector from a pretrained BEiT, or from scratch (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.tasks.detect import TASK
from beitcli.data.transforms.detection import DetectionTransform
from beitcli.engine.detection.dataset import open_detection_data
from beitcli.engine.detection.evaluate import DetectionMetrics
from beitcli.engine.detection.metrics import METRICS, require_pycocotools
from beitcli.engine.detection.task import DetectionTask
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.trainer.finetuning import open_finetuning, run_finetuning
from beitcli.engine.trainer.model_card import FinetunedCard, pixels
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, build_finetuned
from beitcli.engine.trainer.reports import Finetuned, Timed
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.build import head_shape
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.detector import HEADS
from beitcli.models.networks.timm_dense import AnyDetector, new_detector
from beitcli.runtime.compute.device import join_compute


@dataclass(frozen=True)
class DetectReport(Timed, DetectionMetrics, Finetuned):
    """Report of a finetuned detector."""


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> DetectReport | dict[str, Any]:
    """Finetunes a detector and returns the report; with `dry_run`, returns the plan as a dict instead."""
    require_pycocotools()
    begun = open_finetuning(config, join_compute(config), on_event, takes_timm=True)
    config, init = begun.config, begun.init
    outlines = HEADS.load(config.head or TASK.default_head).predicts_masks
    data = begun.compute.world.rank_zero_first(
        lambda: open_detection_data(config, init.classes, outlines, max(init.size), begun.on_event)
    )
    transform = DetectionTransform(
        seed=config.seed,
        size=init.size,
        most=data.most,
        mean_boxes=data.mean_boxes,
        factors=(config.min_resize, config.max_resize),
        outlines=outlines,
        mean=init.normalization[0],
    )
    model = build_detector(config, init.checkpoint, data.classes, begun.on_event)
    plan = make_plan(config, data.training)
    task = DetectionTask(config, plan, model, data.classes, data.measured, begun.compute, init.normalization)

    def own(metrics: dict[str, float]) -> dict[str, Any]:
        of_class = {name: metrics.get(f"ap/{name}") for name in data.classes}
        return {name: metrics.get(name) for name in METRICS} | {"ap_of_class": of_class}

    return run_finetuning(begun, data, transform, task, DetectReport, lambda report: _card(report, task), own)


def _card(report: DetectReport, task: DetectionTask) -> FinetunedCard:
    def shown(*values: float | None) -> str:
        return ", ".join("-" if value is None else f"{value:.4f}" for value in values)

    return FinetunedCard(
        title=f"{task.family} detector",
        facts={
            "images": f"fitted into {pixels(task.model.architecture.image_size)}",
            "head": task.model.head_name,
        },
        metrics={
            f"AP ({report.images:,} images: {report.measured_on})": shown(report.ap),
            "AP at an overlap of 0.5": shown(report.ap50),
            "AP at an overlap of 0.75": shown(report.ap75),
            "AP of small, medium and large objects": shown(report.ap_small, report.ap_medium, report.ap_large),
            **({"AP of masks": shown(report.mask_ap)} if task.model.detection.predicts_masks else {}),
        },
        by_class={f"AP, {name}": shown(value) for name, value in report.ap_of_class.items()},
    )


def build_detector(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> AnyDetector:
    """Builds a detector on the backbone of `--init`; its head is loaded too if its shape and classes are the same."""
    head = config.head or TASK.default_head

    def make(architecture: Architecture) -> AnyDetector:
        _require_even(architecture)
        return new_detector(architecture, len(classes), head, config.head_width, config.regions, config.drop_path)

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        same = checkpoint.kind == TASK.kind and checkpoint.head == head and checkpoint.classes == classes
        keeps = same and head_shape(checkpoint)[0] == config.head_width
        return HeadTransfer((*POOLING, *(() if keeps else (TASK.prefix,))), keeps)

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _require_even(architecture: Architecture) -> None:
    """Raises UsageError for a grid with an odd side: the coarsest level halves it."""
    if any(side % 2 for side in architecture.grid):
        patch, grid = architecture.patch_size, architecture.grid
        raise UsageError(
            f"Images of {architecture.image_size} pixels make {grid[0]} x {grid[1]} patches; detection halves that.",
            f"Give a --size that {2 * patch} divides.",
        )
