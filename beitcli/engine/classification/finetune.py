"""`finetune --task classify`: a classifier from a pretrained BEiT, or from scratch (paper section 2.6, Table 13)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from beitcli.config.architecture import Architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.intensity import parse_intensity
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.label_columns import vector_columns
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.finetuning import FinetuningTransform
from beitcli.engine.classification.evaluate import Accuracy
from beitcli.engine.classification.label_vectors import LabelMetrics
from beitcli.engine.classification.mixing import require_pairs
from beitcli.engine.classification.task import FinetuneTask
from beitcli.engine.events import Note, OnEvent, ignore, openings
from beitcli.engine.report.intervals import commonest_share, share_interval
from beitcli.engine.trainer.data import HeldOut, hold_out, open_images, validation_data, validation_images
from beitcli.engine.trainer.finetuning import FinetuneData, open_finetuning, run_finetuning
from beitcli.engine.trainer.model_card import FinetunedCard, pixels
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, Pretrained, build_finetuned
from beitcli.engine.trainer.reports import Finetuned, Timed
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import UsageError
from beitcli.models.checkpoints.build import timm_reinit
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.classifier import Classifier, ImageClassifier, new_classifier
from beitcli.models.networks.timm_vit import HEADS, TimmArchitecture, TimmViT
from beitcli.runtime.compute.device import join_compute
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.metric_text import is_idle

_LARGEST_TWENTIETH = 1024  # images


@dataclass(frozen=True)
class FinetuneReport(Timed, Accuracy, Finetuned):
    """Report of a finetuned classifier.

    Attributes:
        top1_interval: Wilson's, of 95%.
        baseline_accuracy: Top-1 of always guessing the most frequent class of the images measured on.
    """

    top1_interval: tuple[float, float] = (0.0, 1.0)
    baseline_accuracy: float = 0.0


@dataclass(frozen=True)
class MultiLabelReport(Timed, LabelMetrics, Finetuned):
    """Report of a finetuned classifier of several labels an image."""


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> FinetuneReport | MultiLabelReport | dict[str, Any]:
    """Finetunes a classifier and returns the report; with `dry_run`, returns the plan as a dict instead."""
    compute = join_compute(config)
    multi_label = config.problem == "multi-label"
    if not multi_label:
        require_pairs(config, compute.world.size)
    begun = open_finetuning(config, compute, on_event, takes_timm=True)
    config, init, compute, on_event = begun.config, begun.init, begun.compute, begun.on_event
    world = compute.world
    size = init.size
    source = open_images(config, labelled=not multi_label, size=max(size), on_event=on_event, world=world)
    if multi_label:
        vector_columns(source, source.label_names or (), binary=True)
    held, measured_on = _validation(config, source, max(size), on_event, world)
    classes = (source.label_names if multi_label else source.classes) or ()
    data = FinetuneData(
        held.training,
        held.measured,
        classes,
        held.bad,
        measured_on,
        is_apart=held.is_apart,
        has_own_validation=held.has_own_validation,
    )
    if init.checkpoint is not None and size != init.checkpoint.architecture.image_size:
        own = " x ".join(map(str, init.checkpoint.architecture.image_size))
        on_event(Note(f"Images are {size[0]} x {size[1]} pixels; {config.init} has seen {own}."))
    transform = _training_transform(config, init)
    model = build_classifier(config, init.checkpoint, data.classes, on_event)
    if config.shard and isinstance(model, TimmViT):
        raise UsageError(f"--shard is for BEiTs; '{config.init}' is timm's.", "Leave it out.")
    plan = make_plan(config, data.training)
    task = FinetuneTask(config, plan, model, data.classes, data.measured, compute, init.normalization)
    task.crop = init.crop
    if multi_label:
        return run_finetuning(begun, data, transform, task, MultiLabelReport, lambda report: _label_card(report, task))
    return run_finetuning(
        begun, data, transform, task, FinetuneReport, lambda report: _card(report, task), partial(_own, task)
    )


def _own(task: FinetuneTask, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "top1_interval": share_interval(metrics["top1"], int(metrics["images"])),
        "baseline_accuracy": commonest_share(task.measured_classes()),
    }


def _card(report: FinetuneReport, task: FinetuneTask) -> FinetunedCard:
    return FinetunedCard(
        title=f"{task.family} classifier",
        facts={"images": pixels(task.model.architecture.image_size)},
        metrics={
            f"top-1 ({report.images:,} images: {report.measured_on})": f"{report.top1:.4f} "
            f"(95%: {report.top1_interval[0]:.4f} to {report.top1_interval[1]:.4f})",
            **({} if is_idle("top5", report.classes) else {"top-5": f"{report.top5:.4f}"}),
        },
    )


def _label_card(report: MultiLabelReport, task: FinetuneTask) -> FinetunedCard:
    return FinetunedCard(
        title=f"{task.family} multi-label classifier",
        facts={"images": pixels(task.model.architecture.image_size)},
        metrics={
            f"mAP ({report.images:,} images: {report.measured_on})": f"{report.mean_ap:.4f}",
            "micro-F1 at probability 0.5": f"{report.micro_f1:.4f}",
        },
    )


def build_classifier(
    config: FinetuneConfig, checkpoint: CheckpointHandle | None, classes: tuple[str, ...], on_event: OnEvent
) -> ImageClassifier:
    """Builds the model of `--init`, with a new head unless the classes are the same; without one, from scratch."""

    def make(architecture: Architecture) -> ImageClassifier:
        if checkpoint is None:
            return Classifier(architecture, len(classes), config.drop_path)
        return new_classifier(architecture, len(classes), config.drop_path)

    def head_of(checkpoint: CheckpointHandle) -> HeadTransfer:
        same_problem = checkpoint.problem == config.problem
        return HeadTransfer(_reinit(checkpoint, classes if same_problem else ()), keeps_random_init=True)

    return build_finetuned(config, checkpoint, make, head_of, on_event)


def _reinit(checkpoint: CheckpointHandle, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the key prefixes that keep their initialization: head and norm, unless the pooling is the same.

    The release keeps the `fc_norm` of a finetuned model, and its head if the classes are the same (224 to 384 pixels).
    """
    same_classes = checkpoint.names_classes and checkpoint.classes == classes
    if isinstance(checkpoint.architecture, TimmArchitecture):
        return () if checkpoint.kind == "classifier" and same_classes else (*HEADS, *timm_reinit(checkpoint))
    if checkpoint.kind != "classifier" or checkpoint.pooling != "mean":
        return POOLING
    return () if same_classes else ("head.",)


def _validation(
    config: FinetuneConfig, source: Source, size: int, on_event: OnEvent, world: DistributedContext
) -> tuple[HeldOut, str]:
    """Returns training and validation images, and the name of the latter."""
    own = validation_data(config, source)
    if own is None:
        count = validation_images(config, len(source), _LARGEST_TWENTIETH)
        held = hold_out(source, count, config.seed, world, is_exact=True)
        return held, held.name
    references, split, measured_on = own
    labelled = config.problem == "single-label"
    request = Request(
        split=split,
        role="eval",
        labelled=labelled,
        vectors=not labelled,
        sample_size=size,
        pages=config.pages,
        intensity=parse_intensity(config.intensity_range),
        on_progress=openings(on_event),
        reports_missing=config.resume,
    )
    val = world.rank_zero_first(lambda: open_data(references, request))
    return HeldOut(source, val, (), is_apart=True, has_own_validation=True), measured_on


def _training_transform(config: FinetuneConfig, init: Pretrained) -> FinetuningTransform:
    """Returns the transform. Raises UsageError for an unknown policy, which timm itself reports only on first use."""
    transform = FinetuningTransform(
        seed=config.seed,
        size=init.size,
        min_crop=config.min_crop,
        rand_augment=config.rand_augment,
        erasing=config.erasing,
        mean=init.normalization[0],
    )
    try:
        transform(Image.new("RGB", (64, 64)), 0, 0)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--rand-augment '{transform.rand_augment}' is no policy of timm's ({type(error).__name__}: {error}).",
            "Write it as rand-m9-mstd0.5-inc1; empty for none.",
        ) from None
    return transform
