"""`finetune --task segment`: a segmenter from a pretrained BEiT, or from scratch (paper section 3.2 and Table 14)."""

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
from beitcli.data.loader import Batch
from beitcli.data.segmentation_view import SegmentationView
from beitcli.engine.cards import segmentation_card
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
from beitcli.engine.segmentation import SegmentationTask
from beitcli.engine.segmentation_data import SegmentationData, open_segmentation_data
from beitcli.engine.step import fewest_at_once
from beitcli.engine.training import Plan, train
from beitcli.errors import UsageError
from beitcli.models.beit import forward_flops
from beitcli.models.foreign_vit import ForeignArchitecture
from beitcli.models.head_names import HEAD
from beitcli.models.references import OpenedModel
from beitcli.models.segmenter import Segmenter
from beitcli.models.transfer import Transfer, finetuning_architecture, load_backbone
from beitcli.runtime.device import describe, join_compute
from beitcli.runtime.distributed import World
from beitcli.runtime.metric_text import further_metrics
from beitcli.runtime.signals import StopRequest


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
    world, on_event = compute.world, compute.world.spoken(on_event)
    require_an_image_each(config.batch_size, world)
    opened = world.first_then_others(lambda: origin(config, on_event))
    if opened is not None and isinstance(opened.architecture, ForeignArchitecture):
        raise UsageError(
            f"'{config.init}' is timm's {opened.architecture.name}; --task segment takes BEiTs.",
            "Give a BEiT as --init.",
        )
    size = config.size or (opened.architecture.image_size if opened else DEFAULT_SIZE)
    normalization = opened.normalization if opened else NORMALIZATIONS[config.normalization or "imagenet"]
    goes_on = _goes_on(config, opened)
    known = opened.described.classes if opened and goes_on else ()
    data = open_segmentation_data(config, known, max(size), on_event, world)
    short_side = min(size) if config.short_side is None else config.short_side
    view = SegmentationView(
        seed=config.seed,
        size=size,
        short_side=short_side,
        factors=(config.min_resize, config.max_resize),
        largest_share=config.largest_share,
        distorts=config.photometric,
        mean=normalization[0],
    )
    model = build_segmenter(config, opened, data.classes, on_event)
    plan = make_plan(config, data.training)
    _require_pairs(plan, world)
    task = SegmentationTask(config, plan, model, data.classes, data.measured, compute, normalization, short_side)
    rows = plan_rows(task, plan, data)
    if config.dry_run:

        def batches_of(size: int, steps: int) -> Iterator[Batch]:
            return stream(config, data.training, view, compute, 0, steps, batch_size=size)

        return rehearse(task, plan, config, rows, batches_of, compute, on_event)
    run = open_run(config, world)
    with StopRequest() as stop:
        command = resume_command(config, run.path)
        batches = partial(stream, config, data.training, view, compute)
        planned = Planned("Finetuning", rows)
        path_of = data.training.path
        state = train(task, plan, batches, run, compute, on_event, stop, command, planned, data.bad, path_of)
    figures = state.figures or {}
    report = SegmentReport(
        run=str(run.path),
        checkpoint=str(run.checkpoints / f"step-{state.step:07d}"),
        task="segment",
        step=state.step,
        epoch=plan.epoch(state.step),
        images_seen=state.step * plan.batch_size,
        classes=len(data.classes),
        images=int(figures["images"]),
        measured_on=data.measured_on,
        miou=figures["miou"],
        pixel_accuracy=figures["pixel_accuracy"],
        mean_accuracy=figures["mean_accuracy"],
        iou={name: figures.get(f"iou/{name}") for name in data.classes},
        images_per_second=state.images_per_second,
        seconds=state.seconds,
        further=further_metrics(figures, SegmentReport.__annotations__),
    )
    run.write_text("README.md", segmentation_card(config, report, size, describe(compute)))
    return report


def build_segmenter(
    config: FinetuneConfig, opened: OpenedModel | None, classes: tuple[str, ...], on_event: OnEvent
) -> Segmenter:
    """The backbone of `--init` under a new head; a segmenter's head goes over where head and classes are the same.

    Of a run that goes on, `opened` is its own checkpoint: the loop loads it, and only its shape counts here.
    """
    torch.manual_seed(config.seed)
    head = config.head or "upernet"
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
    if min(architecture.grid) < 2:
        raise UsageError(
            f"Images of {architecture.image_size} pixels make {min(architecture.grid)} patch a side.",
            f"Give a --size of {2 * architecture.patch_size} or more.",
        )
    model = Segmenter(architecture, len(classes), head, config.drop_path)
    if opened is None or _goes_on(config, opened):
        return model
    warn(opened.warnings, on_event)
    keeps = opened.described.head == head and opened.described.classes == classes
    tensors = opened.tensors() | (opened.head_tensors() if keeps else {})
    anew = ("head.", "fc_norm.", "norm.", *(() if keeps else (HEAD,)))
    transfer = load_backbone(model, tensors, opened.architecture, architecture, anew=anew)
    unknown = (*opened.layout.dropped, *(() if keeps else opened.layout.head.values())) if opened.layout else ()
    said = "; ".join(_in_short(transfer).sentences(tuple(dict.fromkeys(map(_short, unknown)))))
    on_event(Note(f"From {opened.weights} ({opened.format} {opened.kind}): {said}"))
    return model


def _in_short(transfer: Transfer) -> Transfer:
    """With the head as one name."""
    return replace(transfer, fresh=tuple(dict.fromkeys(map(_short, transfer.fresh))))


def _short(name: str) -> str:
    parts = ("decode_head", "auxiliary_head")
    return next((part for part in parts if name.startswith(f"{part}.")), name)


def _goes_on(config: FinetuneConfig, opened: OpenedModel | None) -> bool:
    return opened is not None and config.resume and opened.run.resolve() == Path(config.out).resolve()


def _require_pairs(plan: Plan, world: World) -> None:
    """Batch norm over 1 x 1 bins needs two images at once."""
    if fewest_at_once(plan, world) < 2:
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
