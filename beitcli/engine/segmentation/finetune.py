"""`finetune --task segment`: a segmenter from a pretrained BEiT, or from scratch (paper section 3.2 and Table 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.tasks.segment import TASK
from beitcli.data.transforms.segmentation import SegmentationTransform
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.segmentation.dataset import open_segmentation_data
from beitcli.engine.segmentation.evaluate import SegmentationMetrics
from beitcli.engine.segmentation.task import SegmentationTask
from beitcli.engine.trainer.finetuning import open_finetuning, run_finetuning
from beitcli.engine.trainer.model_card import FinetunedCard, pixels
from beitcli.engine.trainer.optimizer_step import min_micro_batch
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, build_finetuned
from beitcli.engine.trainer.reports import Finetuned, Timed
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.timm_dense import AnySegmenter, new_segmenter
from beitcli.runtime.compute.device import join_compute
from beitcli.runtime.distributed.world import DistributedContext


@dataclass(frozen=True)
class SegmentReport(Timed, SegmentationMetrics, Finetuned):
    """Report of a finetuned segmenter."""


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> SegmentReport | dict[str, Any]:
    """Finetunes a segmenter and returns the report; with `dry_run`, returns the plan as a dict instead."""
    begun = open_finetuning(config, join_compute(config), on_event, takes_timm=True)
    config, init, world = begun.config, begun.init, begun.compute.world
    data = open_segmentation_data(config, init.classes, max(init.size), begun.on_event, world)
    model = build_segmenter(config, init.checkpoint, data.classes, begun.on_event)
    plan = make_plan(config, data.training)
    _require_pairs(plan, world)
    task = SegmentationTask(config, plan, model, data.classes, data.measured, begun.compute, init.normalization)
    transform = SegmentationTransform(
        seed=config.seed,
        size=init.size,
        short_side=task.short_side,
        factors=(config.min_resize, config.max_resize),
        largest_share=config.largest_share,
        distorts=config.photometric,
        mean=init.normalization[0],
    )

    def own(metrics: dict[str, float]) -> dict[str, Any]:
        return {"iou": {name: metrics.get(f"iou/{name}") for name in data.classes}}

    return run_finetuning(begun, data, transform, task, SegmentReport, lambda report: _card(report, task), own)


def _card(report: SegmentReport, task: SegmentationTask) -> FinetunedCard:
    return FinetunedCard(
        title=f"{task.family} segmenter",
        facts={"crops": pixels(task.model.architecture.image_size), "head": task.model.head_name},
        metrics={
            f"mIoU ({report.images:,} images: {report.measured_on})": f"{report.miou:.4f}",
            "pixel accuracy": f"{report.pixel_accuracy:.4f}",
            "mean accuracy": f"{report.mean_accuracy:.4f}",
        },
        by_class={f"IoU, {name}": "-" if iou is None else f"{iou:.4f}" for name, iou in report.iou.items()},
    )


def build_segmenter(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> AnySegmenter:
    """Builds a segmenter on the backbone of `--init`; its head is loaded too if head and classes are the same."""
    head = config.head or TASK.default_head

    def make(architecture: Architecture) -> AnySegmenter:
        if min(architecture.grid) < 2:
            raise UsageError(
                f"Images of {architecture.image_size} pixels make {min(architecture.grid)} patch a side.",
                f"Give a --size of {2 * architecture.patch_size} or more.",
            )
        own = checkpoint.segmenter if checkpoint is not None and keeps(checkpoint) else None
        if own is None:
            return new_segmenter(architecture, len(classes), head, config.drop_path)
        indices, settings = own.out_indices, own.head
        return new_segmenter(
            architecture, len(classes), head, config.drop_path, out_indices=indices, head_settings=settings
        )

    def keeps(checkpoint: CheckpointHandle) -> bool:
        return checkpoint.head == head and checkpoint.classes == classes

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        reinit = (*POOLING, *(() if keeps(checkpoint) else (TASK.prefix,)))
        return HeadTransfer(reinit, keeps(checkpoint))

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _require_pairs(plan: Plan, world: DistributedContext) -> None:
    """Raises UsageError for a forward pass of one image."""
    if min_micro_batch(plan, world) < SegmentationTask.least_micro_batch:
        raise UsageError(
            f"Batches of {plan.batch_size:,} images in pieces of {plan.micro_batch:,} leave one image by itself, "
            "which batch norm cannot take.",
            "Give a --batch-size and a --micro-batch of 2 or more.",
        )
