"""`beit finetune`: an image classifier from a pretrained BEiT, or from scratch (paper section 2.6 and Table 13).

    features = mean of the patches of the last block, fc_norm        (B, D)
    loss = cross_entropy(head(features), mixed and smoothed labels)

The learning rate of layer l is lr * layer_decay^(depth + 1 - l): the embedding is 0, the head depth + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.training import FinetuneConfig
from beitcli.data.loader import Batch
from beitcli.data.sources import open_data
from beitcli.data.sources.base import Source
from beitcli.data.views import IMAGENET_MEAN, IMAGENET_STD, FinetuningView
from beitcli.engine.bad_images import refuse_many_bad
from beitcli.engine.cards import finetuning_card
from beitcli.engine.evaluate import class_columns, score
from beitcli.engine.events import Note, OnEvent, Planned, ignore, warn_of_damage
from beitcli.engine.preparation import (
    HeldOut,
    checkpoint_bytes,
    describe_plan,
    hold_out,
    make_plan,
    open_images,
    open_run,
    rehearse,
    stream,
)
from beitcli.engine.training import Plan, Task, Tensors, train
from beitcli.errors import UsageError
from beitcli.models.beit import Classifier, forward_flops
from beitcli.models.references import OpenedModel, open_pretrained
from beitcli.models.transfer import finetuning_architecture, load_backbone
from beitcli.runtime.device import Compute, choose_compute, choose_workers, describe
from beitcli.runtime.keyed import keyed_integer
from beitcli.runtime.optim import make_adamw, parameter_groups
from beitcli.runtime.schedules import warmup_cosine
from beitcli.runtime.signals import StopRequest

_HELD_OUT = 1024


@dataclass(frozen=True)
class FinetuneReport:
    """What was made; top1 and top5 are fractions of `images` images of `measured_on`."""

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


class FinetuneTask(Task):
    """Classification in the training loop."""

    name, kind = "finetune", "classifier"
    model: Classifier

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        model: Classifier,
        classes: tuple[str, ...],
        val: Source,
        compute: Compute,
    ) -> None:
        self.config, self.plan, self.classes, self.val, self.compute = config, plan, classes, val, compute
        self.model = model.to(compute.device)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.averaged = deepcopy(self.model).requires_grad_(False).eval() if config.ema else None
        groups = parameter_groups(self.model, config.weight_decay, config.layer_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)
        self.columns = class_columns(val, list(classes))
        self.mixup = None
        if config.mixup > 0 or config.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.smoothing,
                num_classes=len(classes),
            )

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        """Mixes the batch; timm draws from numpy's global generator, so it is keyed by the step."""
        if self.mixup is None or len(batch["labels"]) % 2:
            return batch
        np.random.seed(keyed_integer(self.config.seed, "mixup", 0, step) % (1 << 32))  # noqa: NPY002
        images, labels = self.mixup(batch["images"], batch["labels"])
        return batch | {"images": images, "labels": labels}

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        logits, labels = self.forward(batch["images"]).float(), batch["labels"]
        if labels.dtype == torch.int64:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        else:
            loss = SoftTargetCrossEntropy()(logits, labels)
        return loss, {}

    def after_step(self, step: int) -> None:
        if self.averaged is not None:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def measure(self) -> dict[str, float]:
        """Top-1 and top-5 on the validation images, of the averaged weights where there are any."""
        model = self.averaged if self.averaged is not None else self.model
        workers = choose_workers(self.config.workers, self.compute.device)
        scores = score(model, self.val, self.columns, self.compute, batch_size=128, workers=workers)
        refuse_many_bad(scores.bad, len(self.val), self.config.max_bad, "Mend or remove them, or raise --max-bad.")
        return {"top1": scores.top1, "top5": scores.top5, "images": scores.images}

    def settings(self) -> dict[str, Any]:
        return {
            "architecture": self.model.architecture.as_dict(),
            "classes": list(self.classes),
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }

    def weights(self) -> Tensors:
        return dict((self.averaged if self.averaged is not None else self.model).state_dict())

    def extra_tensors(self) -> Tensors:
        """The weights that training goes on with, where the checkpoint's are their average."""
        return {f"raw/{k}": v for k, v in self.model.state_dict().items()} if self.averaged is not None else {}

    def load_extra_tensors(self, tensors: Tensors) -> None:
        if self.averaged is not None:
            self.averaged.load_state_dict(self.model.state_dict())
            self.model.load_state_dict({name.removeprefix("raw/"): tensor for name, tensor in tensors.items()})


def build_classifier(config: FinetuneConfig, classes: int, on_event: OnEvent) -> Classifier:
    """The model of `--init`, its head new."""
    torch.manual_seed(config.seed)
    if config.init == "random":
        side = config.size or 224
        architecture = Architecture(
            image_size=(side, side),
            patch_size=config.patch_size,
            positions=config.positions,
            layer_scale=config.layer_scale,
            **SIZES[config.model],
        )
        return Classifier(architecture, classes, config.drop_path)
    opened = open_pretrained(config.init)
    warn_of_damage(opened.warnings, on_event)
    architecture = init_architecture(opened, config.size)
    model = Classifier(architecture, classes, config.drop_path)
    transfer = load_backbone(model, opened.checkpoint.model_tensors(), opened.architecture, architecture, head=False)
    on_event(
        Note(
            f"From {opened.checkpoint.path}: {len(transfer.loaded)} tensors loaded"
            + (f", {len(transfer.resized)} resized" if transfer.resized else "")
            + (f", dropped {', '.join(transfer.dropped)}" if transfer.dropped else "")
            + (f", new {', '.join(transfer.fresh)}" if transfer.fresh else "")
        )
    )
    return model


def init_architecture(opened: OpenedModel, size: int | None) -> Architecture:
    return finetuning_architecture(opened.architecture, (size, size) if size else None)


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> FinetuneReport | dict[str, Any]:
    """Finetunes a classifier; with `dry_run`, a dict of the plan instead."""
    compute = choose_compute(config.device, config.precision)
    size = config.size or 224
    if config.init != "random":
        size = init_architecture(open_pretrained(config.init), config.size).image_size[0]
    source = open_images(config, labelled=True, size=size, on_event=on_event)
    held = _validation(config, source, size)
    classes = source.classes or ()
    view = FinetuningView(
        seed=config.seed,
        size=size,
        min_crop=config.min_crop,
        rand_augment=config.rand_augment,
        erasing=config.erasing,
    )
    _check_augmentation(view)
    model = build_classifier(config, len(classes), on_event)
    plan = make_plan(config, held.training)
    task = FinetuneTask(config, plan, model, classes, held.measured, compute)
    rows = plan_rows(task, plan)
    if config.dry_run:

        def batches_of(size: int, steps: int) -> Iterator[Batch]:
            return stream(config, held.training, view, compute, 0, steps, batch_size=size)

        return rehearse(task, plan, config, rows, batches_of, compute, on_event)
    run = open_run(config)
    on_event(Planned("Finetuning", rows))
    with StopRequest() as stop:
        command = f"Go on with: beit finetune --out {run.path} --resume"
        batches = partial(stream, config, held.training, view, compute)
        state = train(task, plan, batches, run, compute, on_event, stop, command, held.bad)
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
    )
    run.write_text("README.md", finetuning_card(config, report, describe(compute)))
    return report


def _validation(config: FinetuneConfig, source: Source, size: int) -> HeldOut:
    """What to train on and what to measure on.

    `--val` where given; else the `val` split of DATA where it has one; else a twentieth of DATA is kept out.
    """
    references = [config.val] if config.val is not None else list(config.data) if _has_val(config) else None
    if references is None:
        return hold_out(source, _HELD_OUT, config.seed)
    val = open_data(references, role="eval", labelled=True, sample_size=size)
    return HeldOut(source, val, (), True)


def _check_augmentation(view: FinetuningView) -> None:
    """timm finds a wrong policy only when it is used."""
    try:
        view(Image.new("RGB", (view.size, view.size)), 0, 0)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--rand-augment '{view.rand_augment}' is no policy of timm's ({type(error).__name__}: {error}).",
            "Write it as rand-m9-mstd0.5-inc1; empty for none.",
        ) from None


def _has_val(config: FinetuneConfig) -> bool:
    """Whether training leaves a `val` split of every DATA aside."""
    splits = all(name == "sample" or all((Path(name) / s).is_dir() for s in ("train", "val")) for name in config.data)
    return splits and config.split in (None, "train")


def _measured_on(config: FinetuneConfig, held: HeldOut) -> str:
    if config.val is not None:
        return config.val
    return f"{' '.join(config.data)}, split val" if _has_val(config) else held.name


def plan_rows(task: FinetuneTask, plan: Plan) -> dict[str, str]:
    architecture = task.model.architecture
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    flops = forward_flops(architecture, 0, 0)
    side = architecture.image_size[0]
    return {
        "model": f"BEiT from {task.config.init}, {parameters:,} parameters, {architecture.positions} positions",
        "images of": f"{side} x {side} pixels, {len(task.classes)} classes, {len(task.val):,} to measure on",
        "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        **describe_plan(plan, task.config),
        "layer decay": f"{task.config.layer_decay:g}",
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }
