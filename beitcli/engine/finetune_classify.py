"""`finetune --task classify`: a classifier from a pretrained BEiT, or from scratch (paper section 2.6, Table 13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.training import FinetuneConfig
from beitcli.data.finetuning_view import FinetuningView
from beitcli.data.loader import Batch
from beitcli.data.sources import open_data
from beitcli.data.sources.base import Source
from beitcli.data.splits import have_train_and_val
from beitcli.engine.cards import finetuning_card
from beitcli.engine.classification import FinetuneTask, require_pairs
from beitcli.engine.events import Note, OnEvent, Planned, downloads, ignore, openings, warn
from beitcli.engine.preparation import (
    HeldOut,
    checkpoint_bytes,
    describe_plan,
    hold_out,
    make_plan,
    open_images,
    open_run,
    rehearse,
    require_an_image_each,
    resume_command,
    stream,
)
from beitcli.engine.training import Plan, train
from beitcli.errors import UsageError
from beitcli.models.beit import Classifier, forward_flops
from beitcli.models.classifiers import ImageClassifier, new_classifier
from beitcli.models.foreign_vit import HEADS, ForeignArchitecture, ForeignViT, load_foreign
from beitcli.models.references import OpenedModel, open_checkpoint, open_pretrained
from beitcli.models.transfer import finetuning_architecture, load_backbone
from beitcli.runtime.checkpoint import newest_checkpoint
from beitcli.runtime.device import describe, join_compute
from beitcli.runtime.distributed import World
from beitcli.runtime.metric_text import further_metrics
from beitcli.runtime.signals import StopRequest

_HELD_OUT = 1024
DEFAULT_SIZE = (224, 224)  # where nothing is pretrained


@dataclass(frozen=True)
class FinetuneReport:
    """What was made; top1 and top5 are fractions of `images` images of `measured_on`.

    Attributes:
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
    top1: float
    top5: float
    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


def build_classifier(
    config: FinetuneConfig, opened: OpenedModel | None, classes: tuple[str, ...], on_event: OnEvent
) -> ImageClassifier:
    """The model of `--init`, its head new but for the same classes; from scratch where nothing is `opened`.

    Of a run that goes on, `opened` is its own checkpoint: the loop loads it, and only its shape counts here.
    """
    torch.manual_seed(config.seed)
    if opened is None:
        architecture = Architecture(
            image_size=config.size or DEFAULT_SIZE,
            patch_size=config.patch_size,
            positions=config.positions,
            layer_scale=config.layer_scale,
            **SIZES[config.model],
        )
        return Classifier(architecture, len(classes), config.drop_path)
    if config.resume and opened.run.resolve() == Path(config.out).resolve():
        return new_classifier(opened.architecture, len(classes), config.drop_path)
    warn(opened.warnings, on_event)
    architecture = finetuning_architecture(opened.architecture, config.size)
    model = new_classifier(architecture, len(classes), config.drop_path)
    if opened.seed is not None:
        shape = (
            f"{architecture.depth} blocks of width {architecture.width}, patches of {architecture.patch_size} pixels"
        )
        on_event(Note(f"From scratch, shaped as {opened.reference} says: {shape}."))
        return model
    anew = _anew(opened, classes)
    if isinstance(model, ForeignViT):
        transfer = load_foreign(model, opened.tensors(), opened.architecture, anew=anew)
    else:
        transfer = load_backbone(model, opened.tensors(), opened.architecture, architecture, anew=anew)
    unknown = (*opened.layout.dropped, *opened.layout.head.values()) if opened.layout else ()
    on_event(Note(f"From {opened.weights} ({opened.format} {opened.kind}): " + "; ".join(transfer.sentences(unknown))))
    return model


def _anew(opened: OpenedModel, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What does not go over: the head and its norm, but for those of a classifier that pools alike.

    The release keeps a finetuned model's `fc_norm`, and its head where the classes are the same (224 to 384 pixels).
    """
    found = opened.described
    if isinstance(found.architecture, ForeignArchitecture):
        return () if found.kind == "classifier" and found.names_classes and found.classes == classes else HEADS
    if found.kind != "classifier" or found.pooling != "mean":
        return ("head.", "fc_norm.", "norm.")
    return () if found.names_classes and found.classes == classes else ("head.",)


def origin(config: FinetuneConfig, on_event: OnEvent) -> OpenedModel | None:
    """Where the weights come from: a run that goes on needs no `--init`, which may have gone or changed meanwhile."""
    if config.resume and config.out and newest_checkpoint(Path(config.out), weights_only=True) is not None:
        return open_checkpoint(config.out)
    if config.init == "random":
        return None
    return open_pretrained(config.init, downloads(on_event), config.seed).normalized(config.normalization)


def finetune_classifier(config: FinetuneConfig, on_event: OnEvent = ignore) -> FinetuneReport | dict[str, Any]:
    """Finetunes a classifier; with `dry_run`, a dict of the plan instead."""
    compute = join_compute(config)
    world, on_event = compute.world, compute.world.spoken(on_event)
    require_an_image_each(config.batch_size, world)
    require_pairs(config, world.size)
    opened = world.first_then_others(lambda: origin(config, on_event))
    size = config.size or (opened.architecture.image_size if opened else DEFAULT_SIZE)
    normalization = opened.normalization if opened else NORMALIZATIONS[config.normalization or "imagenet"]
    source = open_images(config, labelled=True, size=max(size), on_event=on_event, world=world)
    held = _validation(config, source, max(size), on_event, world)
    classes = source.classes or ()
    if opened is not None and size != opened.architecture.image_size:
        own = " x ".join(map(str, opened.architecture.image_size))
        on_event(Note(f"Images are {size[0]} x {size[1]} pixels; {config.init} has seen {own}."))
    view = FinetuningView(
        seed=config.seed,
        size=size,
        min_crop=config.min_crop,
        rand_augment=config.rand_augment,
        erasing=config.erasing,
        mean=normalization[0],
    )
    _check_augmentation(view)
    model = build_classifier(config, opened, classes, on_event)
    if config.shard and isinstance(model, ForeignViT):
        raise UsageError(f"--shard is for BEiTs; '{config.init}' is timm's.", "Leave it out.")
    plan = make_plan(config, held.training)
    task = FinetuneTask(config, plan, model, classes, held.measured, compute, normalization)
    rows = plan_rows(task, plan)
    if config.dry_run:

        def batches_of(size: int, steps: int) -> Iterator[Batch]:
            return stream(config, held.training, view, compute, 0, steps, batch_size=size)

        return rehearse(task, plan, config, rows, batches_of, compute, on_event)
    run = open_run(config, world)
    with StopRequest() as stop:
        command = resume_command(config, run.path)
        batches = partial(stream, config, held.training, view, compute)
        planned = Planned("Finetuning", rows)
        path_of = held.training.path
        state = train(task, plan, batches, run, compute, on_event, stop, command, planned, held.bad, path_of)
    figures = state.figures or {}
    report = FinetuneReport(
        run=str(run.path),
        checkpoint=str(run.checkpoints / f"step-{state.step:07d}"),
        task="classify",
        step=state.step,
        epoch=plan.epoch(state.step),
        images_seen=state.step * plan.batch_size,
        classes=len(classes),
        images=int(figures["images"]),
        measured_on=_measured_on(config, held),
        top1=figures["top1"],
        top5=figures["top5"],
        images_per_second=state.images_per_second,
        seconds=state.seconds,
        further=further_metrics(figures, FinetuneReport.__annotations__),
    )
    run.write_text("README.md", finetuning_card(config, report, size, describe(compute)))
    return report


def _validation(config: FinetuneConfig, source: Source, size: int, on_event: OnEvent, world: World) -> HeldOut:
    """What to train on and what to measure on.

    `--val` where given; else the `val` split of DATA where it has one; else a twentieth of DATA is kept out.
    """
    references = [config.val] if config.val is not None else list(config.data) if _has_val(config) else None
    if references is None:
        return hold_out(source, _HELD_OUT, config.seed, world)
    told = openings(on_event)
    val = world.first_then_others(
        lambda: open_data(references, role="eval", labelled=True, sample_size=size, on_progress=told)
    )
    return HeldOut(source, val, (), True)


def _check_augmentation(view: FinetuningView) -> None:
    """timm finds a wrong policy only when it is used."""
    try:
        view(Image.new("RGB", (64, 64)), 0, 0)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--rand-augment '{view.rand_augment}' is no policy of timm's ({type(error).__name__}: {error}).",
            "Write it as rand-m9-mstd0.5-inc1; empty for none.",
        ) from None


def _has_val(config: FinetuneConfig) -> bool:
    """Whether training leaves a `val` split of every DATA aside."""
    return config.split in (None, "train") and have_train_and_val(config.data)


def _measured_on(config: FinetuneConfig, held: HeldOut) -> str:
    if config.val is not None:
        return config.val
    return f"{' '.join(config.data)}, split val" if _has_val(config) else held.name


def plan_rows(task: FinetuneTask, plan: Plan) -> dict[str, str]:
    architecture = task.model.architecture
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    flops = forward_flops(architecture, 0, 0)
    height, width = architecture.image_size
    return {
        "model": f"{_kind(architecture)} from {task.config.init}, {parameters:,} parameters",
        "images of": f"{height} x {width} pixels, {len(task.classes)} classes, {len(task.val):,} to measure on",
        "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        **describe_plan(plan, task.config),
        "layer decay": f"{task.config.layer_decay:g}",
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }


def _kind(architecture: Architecture) -> str:
    if isinstance(architecture, ForeignArchitecture):
        return f"timm's {architecture.name}"
    return f"BEiT ({architecture.positions} positions)"
