"""`finetune --task segment`: a segmenter from a pretrained BEiT, or from scratch (paper section 3.2 and Table 14)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.data.transforms.segmentation import SegmentationView
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.segmentation.dataset import SegmentationData, open_segmentation_data
from beitcli.engine.segmentation.task import SegmentationTask
from beitcli.engine.trainer.data import require_an_image_each
from beitcli.engine.trainer.job import Finished, Job, run_job
from beitcli.engine.trainer.model_card import segmentation_card
from beitcli.engine.trainer.optimizer_step import min_micro_batch
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, build_finetuned, open_for_finetuning
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan, make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.head_keys import HEAD
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.segmenter import Segmenter
from beitcli.runtime.compute.device import describe, join_compute
from beitcli.runtime.distributed.world import DistributedContext


@dataclass(frozen=True)
class SegmentReport:
    """What was made; figures are fractions in 0-1 of `images` images of `measured_on`.

    Attributes:
        iou: By class name; None where a class is neither labelled nor predicted there.
        further: Metrics that have no field of their own.
    """

    run: str
    checkpoint: str
    task: str
    step: int
    epoch: float
    images_seen: int
    classes: int
    images: int
    measured_on: str
    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float | None]
    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


def finetune_segmenter(config: FinetuneConfig, on_event: OnEvent = ignore) -> SegmentReport | dict[str, Any]:
    """Finetunes a segmenter; with `dry_run`, a dict of the plan instead."""
    compute = join_compute(config)
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    require_an_image_each(config.batch_size, world)
    init = open_for_finetuning(config, world, on_event)
    size = init.size
    data = open_segmentation_data(config, init.classes, max(size), on_event, world)
    short_side = min(size) if config.short_side is None else config.short_side
    view = SegmentationView(
        seed=config.seed,
        size=size,
        short_side=short_side,
        factors=(config.min_resize, config.max_resize),
        largest_share=config.largest_share,
        distorts=config.photometric,
        mean=init.normalization[0],
    )
    model = build_segmenter(config, init.checkpoint, data.classes, on_event)
    plan = make_plan(config, data.training)
    _require_pairs(plan, world)
    task = SegmentationTask(config, plan, model, data.classes, data.measured, compute, init.normalization, short_side)

    def report(finished: Finished) -> SegmentReport:
        return finished.report(
            SegmentReport,
            task="segment",
            classes=len(data.classes),
            images=int(finished.metrics["images"]),
            measured_on=data.measured_on,
            iou={name: finished.metrics.get(f"iou/{name}") for name in data.classes},
        )

    job = Job(
        title="Finetuning",
        config=config,
        compute=compute,
        on_event=on_event,
        data=data,
        view=view,
        plan=plan,
        task=task,
        rows=plan_rows(task, plan, data),
        report=report,
        card=lambda report, hardware: segmentation_card(config, report, size, hardware),
    )
    return run_job(config, compute, on_event, lambda session: job)


def build_segmenter(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> Segmenter:
    """The backbone of `--init` under a new head; a segmenter's head goes over where head and classes are the same."""
    head = config.head or "upernet"

    def make(architecture: Architecture) -> Segmenter:
        if min(architecture.grid) < 2:
            raise UsageError(
                f"Images of {architecture.image_size} pixels make {min(architecture.grid)} patch a side.",
                f"Give a --size of {2 * architecture.patch_size} or more.",
            )
        return Segmenter(architecture, len(classes), head, config.drop_path)

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        keeps = checkpoint.head == head and checkpoint.classes == classes
        return HeadTransfer((*POOLING, *(() if keeps else (HEAD,))), keeps, ("decode_head", "auxiliary_head"))

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _require_pairs(plan: Plan, world: DistributedContext) -> None:
    """Batch norm over 1 x 1 bins needs two images at once."""
    if min_micro_batch(plan, world) < 2:
        raise UsageError(
            f"Batches of {plan.batch_size} images in pieces of {plan.micro_batch} leave one image by itself, "
            "which batch norm cannot take.",
            "Give a --batch-size and a --micro-batch of 2 or more.",
        )


def plan_rows(task: SegmentationTask, plan: Plan, data: SegmentationData) -> dict[str, str]:
    architecture, config = task.model.architecture, task.config
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    of_head = sum(parameter.numel() for parameter in task.model.decode_head.parameters())
    height, width = architecture.image_size
    rows = describe_plan(plan, config)
    rows["learning rate"] = f"{config.lr:g}, {plan.warmup_steps:,} steps of warm-up, linear to {config.min_lr:g}"
    return {
        "model": f"BEiT from {config.init}, {parameters:,} parameters, {architecture.positions} positions",
        "head": f"{task.model.head_name}, {of_head:,} of these parameters, over blocks {list(task.model.taps)}",
        "images of": f"{height} x {width} pixels, {len(task.classes)} classes, {len(data.measured):,} to measure on",
        "backbone": f"{forward_flops(architecture, 0, 0) / 1e9:.3g} GFLOP an image forward",
        **rows,
        "layer decay": f"{config.layer_decay:g}",
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }
