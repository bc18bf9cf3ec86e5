"""`finetune --task detect`: a detector from a pretrained BEiT, or from scratch (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.data.transforms.detection import DetectionView
from beitcli.engine.detection.dataset import DetectionData, open_detection_data
from beitcli.engine.detection.metrics import require_pycocotools
from beitcli.engine.detection.task import FIGURES, DetectionTask
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.trainer.data import require_an_image_each
from beitcli.engine.trainer.job import Finished, Job, run_job
from beitcli.engine.trainer.model_card import detection_card
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, build_finetuned, open_for_finetuning
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan, make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.build import head_shape
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.head_keys import DETECTION
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.detector import Detector
from beitcli.runtime.compute.device import describe, join_compute

DEFAULT_HEAD = "faster-rcnn"
_PARTS = (f"{DETECTION}pyramid", f"{DETECTION}rpn", f"{DETECTION}roi_heads", "decode_head", "auxiliary_head")


@dataclass(frozen=True)
class DetectReport:
    """What was made; figures are fractions in 0-1 of `images` images of `measured_on`, None where nothing is to find.

    Attributes:
        ap_of_class: By class name.
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
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_ap75: float | None
    ap_of_class: dict[str, float | None]
    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


def finetune_detector(config: FinetuneConfig, on_event: OnEvent = ignore) -> DetectReport | dict[str, Any]:
    """Finetunes a detector; with `dry_run`, a dict of the plan instead."""
    require_pycocotools()
    compute = join_compute(config)
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    require_an_image_each(config.batch_size, world)
    init = open_for_finetuning(config, world, on_event)
    size = init.size
    data = world.rank_zero_first(lambda: open_detection_data(config, init.classes, max(size), on_event))
    view = DetectionView(
        seed=config.seed,
        size=size,
        most=data.most,
        factors=(config.min_resize, config.max_resize),
        outlines=config.head == "mask-rcnn",
        mean=init.normalization[0],
    )
    model = build_detector(config, init.checkpoint, data.classes, on_event)
    plan = make_plan(config, data.training)
    task = DetectionTask(config, plan, model, data.classes, data.measured, compute, init.normalization)

    def report(finished: Finished) -> DetectReport:
        metrics = finished.metrics
        return finished.report(
            DetectReport,
            task="detect",
            classes=len(data.classes),
            images=int(metrics["images"]),
            measured_on=data.measured_on,
            ap_of_class={name: metrics.get(f"ap/{name}") for name in data.classes},
            **{name: metrics.get(name) for name in FIGURES},
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
        card=lambda report, hardware: detection_card(config, report, size, hardware),
    )
    return run_job(config, compute, on_event, lambda session: job)


def build_detector(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> Detector:
    """The backbone of `--init` under a new head; a detector's own goes over if its shape and classes are the same."""
    head = config.head or DEFAULT_HEAD

    def make(architecture: Architecture) -> Detector:
        _require_even(architecture)
        return Detector(architecture, len(classes), head, config.head_width, config.regions, config.drop_path)

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        same = checkpoint.kind == "detector" and checkpoint.head == head and checkpoint.classes == classes
        keeps = same and head_shape(checkpoint)[0] == config.head_width
        return HeadTransfer((*POOLING, *(() if keeps else (DETECTION,))), keeps, _PARTS)

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _require_even(architecture: Architecture) -> None:
    """The coarsest level halves the grid."""
    if any(side % 2 for side in architecture.grid):
        patch, grid = architecture.patch_size, architecture.grid
        raise UsageError(
            f"Images of {architecture.image_size} pixels make {grid[0]} x {grid[1]} patches; detection halves that.",
            f"Give a --size that {2 * patch} divides.",
        )


def plan_rows(task: DetectionTask, plan: Plan, data: DetectionData) -> dict[str, str]:
    architecture, config = task.model.architecture, task.config
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    of_head = sum(parameter.numel() for parameter in task.model.detection.parameters())
    height, width = architecture.image_size
    strides = ", ".join(str(architecture.patch_size * 2**level // 4) for level in range(5))
    return {
        "model": f"BEiT from {config.init}, {parameters:,} parameters, {architecture.positions} positions",
        "head": f"{task.model.head_name}, {of_head:,} of these parameters, at strides {strides}",
        "images of": f"{height} x {width} pixels, {len(task.classes)} classes, {len(data.measured):,} to measure on",
        "backbone": f"{forward_flops(architecture, 0, 0) / 1e9:.3g} GFLOP an image forward",
        **describe_plan(plan, config),
        "layer decay": f"{config.layer_decay:g}",
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }
