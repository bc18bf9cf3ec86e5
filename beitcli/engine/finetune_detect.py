"""`finetune --task detect`: a detector from a pretrained BEiT, or from scratch (ViTDet, arXiv 2203.16527)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.training import FinetuneConfig
from beitcli.data.detection_view import DetectionView
from beitcli.data.loader import Batch
from beitcli.engine.average_precision import require_pycocotools
from beitcli.engine.cards import detection_card
from beitcli.engine.detection import FIGURES, DetectionTask
from beitcli.engine.detection_data import DetectionData, open_detection_data
from beitcli.engine.events import Note, OnEvent, Planned, ignore, warn
from beitcli.engine.finetune_classify import DEFAULT_SIZE, origin
from beitcli.engine.preparation import (
    checkpoint_bytes,
    describe_plan,
    make_plan,
    open_run,
    rehearse,
    require_an_image_each,
    resume_command,
    stream,
)
from beitcli.engine.training import Plan, train
from beitcli.errors import UsageError
from beitcli.models.beit import forward_flops
from beitcli.models.detector import Detector
from beitcli.models.foreign_vit import ForeignArchitecture
from beitcli.models.head_names import DETECTION
from beitcli.models.opened_detector import head_shape
from beitcli.models.references import OpenedModel
from beitcli.models.transfer import Transfer, finetuning_architecture, load_backbone
from beitcli.runtime.device import describe, join_compute
from beitcli.runtime.metric_text import further_metrics
from beitcli.runtime.signals import StopRequest

DEFAULT_HEAD = "faster-rcnn"


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
    world, on_event = compute.world, compute.world.spoken(on_event)
    require_an_image_each(config.batch_size, world)
    opened = world.first_then_others(lambda: origin(config, on_event))
    if opened is not None and isinstance(opened.architecture, ForeignArchitecture):
        raise UsageError(
            f"'{config.init}' is timm's {opened.architecture.name}; --task detect takes BEiTs.",
            "Give a BEiT as --init.",
        )
    _require_images(config, world.size)
    size = config.size or (opened.architecture.image_size if opened else DEFAULT_SIZE)
    normalization = opened.normalization if opened else NORMALIZATIONS[config.normalization or "imagenet"]
    known = opened.described.classes if opened is not None and _goes_on(config, opened) else ()
    data = world.first_then_others(lambda: open_detection_data(config, known, max(size), on_event))
    view = DetectionView(
        seed=config.seed,
        size=size,
        most=data.most,
        factors=(config.min_resize, config.max_resize),
        outlines=config.head == "mask-rcnn",
        mean=normalization[0],
    )
    model = build_detector(config, opened, data.classes, on_event)
    plan = make_plan(config, data.training)
    task = DetectionTask(config, plan, model, data.classes, data.measured, compute, normalization)
    rows = plan_rows(task, plan, data)
    if config.dry_run:

        def batches_of(size: int, steps: int) -> Iterator[Batch]:
            return stream(config, data.training, view, compute, 0, steps, batch_size=size)

        return rehearse(task, plan, config, rows, batches_of, compute, on_event)
    run = open_run(config, world)
    with StopRequest() as stop:
        command = resume_command(config, run.path)
        batches = partial(stream, config, data.training, view, compute)
        planned, path_of = Planned("Finetuning", rows), data.training.path
        state = train(task, plan, batches, run, compute, on_event, stop, command, planned, data.bad, path_of)
    figures = state.figures or {}
    report = DetectReport(
        run=str(run.path),
        checkpoint=str(run.checkpoints / f"step-{state.step:07d}"),
        task="detect",
        step=state.step,
        epoch=plan.epoch(state.step),
        images_seen=state.step * plan.batch_size,
        classes=len(data.classes),
        images=int(figures["images"]),
        measured_on=data.measured_on,
        **{name: figures.get(name) for name in FIGURES},
        ap_of_class={name: figures.get(f"ap/{name}") for name in data.classes},
        images_per_second=state.images_per_second,
        seconds=state.seconds,
        further=further_metrics(figures, DetectReport.__annotations__),
    )
    run.write_text("README.md", detection_card(config, report, size, describe(compute)))
    return report


def build_detector(
    config: FinetuneConfig, opened: OpenedModel | None, classes: tuple[str, ...], on_event: OnEvent
) -> Detector:
    """The backbone of `--init` under a new head; a detector's head goes over where its shape and classes are the same.

    Of a run that goes on, `opened` is its own checkpoint: the loop loads it, and only its shape counts here.
    """
    torch.manual_seed(config.seed)
    head = config.head or DEFAULT_HEAD
    if opened is None:
        architecture = Architecture(
            image_size=config.size or DEFAULT_SIZE,
            patch_size=config.patch_size,
            positions=config.positions,
            layer_scale=config.layer_scale,
            **SIZES[config.model],
        )
    elif _goes_on(config, opened):
        architecture = opened.architecture
    else:
        architecture = finetuning_architecture(opened.architecture, config.size)
    _require_even(architecture)
    model = Detector(architecture, len(classes), head, config.head_width, config.regions, config.drop_path)
    if opened is None or _goes_on(config, opened):
        return model
    warn(opened.warnings, on_event)
    found = opened.described
    same = opened.kind == "detector" and found.head == head and found.classes == classes
    keeps = same and head_shape(opened)[0] == config.head_width
    tensors = opened.tensors() | (opened.head_tensors() if keeps else {})
    anew = ("head.", "fc_norm.", "norm.", *(() if keeps else (DETECTION,)))
    transfer = load_backbone(model, tensors, opened.architecture, architecture, anew=anew)
    unknown = (*opened.layout.dropped, *(() if keeps else opened.layout.head.values())) if opened.layout else ()
    said = "; ".join(_in_short(transfer).sentences(tuple(dict.fromkeys(map(_short, unknown)))))
    on_event(Note(f"From {opened.weights} ({opened.format} {opened.kind}): {said}"))
    return model


def _in_short(transfer: Transfer) -> Transfer:
    """With each part of the head as one name."""
    return replace(transfer, fresh=tuple(dict.fromkeys(map(_short, transfer.fresh))))


def _short(name: str) -> str:
    parts = (f"{DETECTION}pyramid", f"{DETECTION}rpn", f"{DETECTION}roi_heads", "decode_head", "auxiliary_head")
    return next((part for part in parts if name.startswith(f"{part}.")), name)


def _goes_on(config: FinetuneConfig, opened: OpenedModel) -> bool:
    return config.resume and opened.run.resolve() == Path(config.out).resolve()


def _require_even(architecture: Architecture) -> None:
    """The coarsest level halves the grid."""
    if any(side % 2 for side in architecture.grid):
        patch, grid = architecture.patch_size, architecture.grid
        raise UsageError(
            f"Images of {architecture.image_size} pixels make {grid[0]} x {grid[1]} patches; detection halves that.",
            f"Give a --size that {2 * patch} divides.",
        )


def _require_images(config: FinetuneConfig, processes: int) -> None:
    if config.batch_size < processes:
        raise UsageError(
            f"--batch-size {config.batch_size} leaves some of {processes} processes without an image.",
            f"Give {processes} or more: it counts the images of all processes.",
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
