"""`finetune --task classify`: a classifier from a pretrained BEiT, or from scratch (paper section 2.6, Table 13)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.data.sources import open_data
from beitcli.data.sources.base import Source
from beitcli.data.sources.splits import have_train_and_val
from beitcli.data.transforms.finetuning import FinetuningView
from beitcli.engine.classification.task import FinetuneTask, require_pairs
from beitcli.engine.events import Note, OnEvent, ignore, openings
from beitcli.engine.trainer.data import HeldOut, hold_out, open_images, require_an_image_each
from beitcli.engine.trainer.job import Finished, Job, run_job
from beitcli.engine.trainer.model_card import finetuning_card
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, Pretrained, build_finetuned, open_for_finetuning
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan, make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.classifier import Classifier, ImageClassifier, new_classifier
from beitcli.models.networks.timm_vit import HEADS, TimmArchitecture, TimmViT
from beitcli.runtime.compute.device import describe, join_compute
from beitcli.runtime.distributed.world import DistributedContext

_HELD_OUT = 1024


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


def finetune_classifier(config: FinetuneConfig, on_event: OnEvent = ignore) -> FinetuneReport | dict[str, Any]:
    """Finetunes a classifier; with `dry_run`, a dict of the plan instead."""
    compute = join_compute(config)
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    require_an_image_each(config.batch_size, world)
    require_pairs(config, world.size)
    init = open_for_finetuning(config, world, on_event, takes_timm=True)
    size = init.size
    source = open_images(config, labelled=True, size=max(size), on_event=on_event, world=world)
    held = _validation(config, source, max(size), on_event, world)
    classes = source.classes or ()
    if init.checkpoint is not None and size != init.checkpoint.architecture.image_size:
        own = " x ".join(map(str, init.checkpoint.architecture.image_size))
        on_event(Note(f"Images are {size[0]} x {size[1]} pixels; {config.init} has seen {own}."))
    view = _training_view(config, init)
    model = build_classifier(config, init.checkpoint, classes, on_event)
    if config.shard and isinstance(model, TimmViT):
        raise UsageError(f"--shard is for BEiTs; '{config.init}' is timm's.", "Leave it out.")
    plan = make_plan(config, held.training)
    task = FinetuneTask(config, plan, model, classes, held.measured, compute, init.normalization)

    def report(finished: Finished) -> FinetuneReport:
        return finished.report(
            FinetuneReport,
            task="classify",
            classes=len(classes),
            images=int(finished.metrics["images"]),
            measured_on=_measured_on(config, held),
        )

    job = Job(
        title="Finetuning",
        config=config,
        compute=compute,
        on_event=on_event,
        data=held,
        view=view,
        plan=plan,
        task=task,
        rows=plan_rows(task, plan),
        report=report,
        card=lambda report, hardware: finetuning_card(config, report, size, hardware),
    )
    return run_job(config, compute, on_event, lambda session: job)


def build_classifier(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> ImageClassifier:
    """The model of `--init`, its head new but for the same classes; from scratch where there is none."""

    def make(architecture: Architecture) -> ImageClassifier:
        if checkpoint is None:
            return Classifier(architecture, len(classes), config.drop_path)
        return new_classifier(architecture, len(classes), config.drop_path)

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        return HeadTransfer(_reinit(checkpoint, classes), draws_anew=True)

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _reinit(checkpoint: CheckpointHandle, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What does not go over: the head and its norm, but for those of a classifier that pools alike.

    The release keeps a finetuned model's `fc_norm`, and its head where the classes are the same (224 to 384 pixels).
    """
    same_classes = checkpoint.names_classes and checkpoint.classes == classes
    if isinstance(checkpoint.architecture, TimmArchitecture):
        return () if checkpoint.kind == "classifier" and same_classes else HEADS
    if checkpoint.kind != "classifier" or checkpoint.pooling != "mean":
        return POOLING
    return () if same_classes else ("head.",)


def _validation(
    config: FinetuneConfig, source: Source, size: int, on_event: OnEvent, world: DistributedContext
) -> HeldOut:
    """What to train on and what to measure on.

    `--val` where given; else the `val` split of DATA where it has one; else a twentieth of DATA is kept out.
    """
    references = [config.val] if config.val is not None else list(config.data) if _has_val(config) else None
    if references is None:
        return hold_out(source, _HELD_OUT, config.seed, world)
    told = openings(on_event)
    val = world.rank_zero_first(
        lambda: open_data(references, role="eval", labelled=True, sample_size=size, on_progress=told)
    )
    return HeldOut(source, val, (), True)


def _training_view(config: FinetuneConfig, init: Pretrained) -> FinetuningView:
    """Raises UsageError for a policy of augmentation that timm has not; timm finds that only when it is used."""
    view = FinetuningView(
        seed=config.seed,
        size=init.size,
        min_crop=config.min_crop,
        rand_augment=config.rand_augment,
        erasing=config.erasing,
        mean=init.normalization[0],
    )
    try:
        view(Image.new("RGB", (64, 64)), 0, 0)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--rand-augment '{view.rand_augment}' is no policy of timm's ({type(error).__name__}: {error}).",
            "Write it as rand-m9-mstd0.5-inc1; empty for none.",
        ) from None
    return view


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
    if isinstance(architecture, TimmArchitecture):
        return f"timm's {architecture.name}"
    return f"BEiT ({architecture.positions} positions)"
