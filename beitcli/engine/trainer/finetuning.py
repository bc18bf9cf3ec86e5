"""Finetuning for any task: opening `--init`, the common part of the `Task`, the job.

    begun = open_finetuning(config, join_compute(config), on_event)     --init, opened once
    task = SegmentationTask(config, plan, model, ...)                   a `FinetunedTask`
    run_finetuning(begun, data, transform, task, ...)                   plan or dry run, loop, report, card

In between, each task opens its data and builds its network.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Generic, TypeVar

from torch import nn

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.intensity import intensity_entry, with_models_intensity
from beitcli.config.normalization import IMAGENET, Normalization
from beitcli.config.random_weights import RANDOM
from beitcli.config.resizing import DEFAULT
from beitcli.data.loading.batch_datasets import Transform
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent
from beitcli.engine.trainer.arithmetic import arithmetic_row, with_step_arithmetic
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.data import measured_text, require_an_image_each
from beitcli.engine.trainer.ema import EMATask
from beitcli.engine.trainer.job import Finished, Job
from beitcli.engine.trainer.large_recipe import what_a_large_recipe_takes
from beitcli.engine.trainer.metric_log import check_writers
from beitcli.engine.trainer.model_card import FinetunedCard, finetuning_card
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.preflight.check import Preflight
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.engine.trainer.preflight.given_init import given_init_findings
from beitcli.engine.trainer.pretrained import Pretrained, open_for_finetuning, scratch_architecture
from beitcli.engine.trainer.reports import Finetuned
from beitcli.engine.trainer.run_job import run_job
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan
from beitcli.models.networks.beit import forward_flops
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.compute.device import Compute, describe
from beitcli.runtime.compute.lr_schedules import warmup_cosine
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.runtime.metric_text import size_text

Images = TypeVar("Images", bound=Source)
Report = TypeVar("Report", bound=Finetuned)


@dataclass(frozen=True)
class FinetuneSetup:
    """A finetuning job before its data is opened.

    Attributes:
        config: The settings, with what `--init` decides.
        init: The checkpoint of `--init`.
        on_event: Silent on every rank but the first.
    """

    config: FinetuneConfig
    compute: Compute
    init: Pretrained
    on_event: OnEvent


def open_finetuning(
    config: FinetuneConfig, compute: Compute, on_event: OnEvent, *, takes_timm: bool = False
) -> FinetuneSetup:
    """Opens `--init`.

    Args:
        takes_timm: Whether it may be a timm model that is not a BEiT.
    """
    require_an_image_each(config.batch_size, compute.world)  # alike on all ranks, so before they wait for one another
    check_writers(config, compute.world)
    on_event = compute.world.rank_zero_only(on_event)
    if not config.resume and (takes := what_a_large_recipe_takes(config)):
        on_event(Note(takes))
    init = open_for_finetuning(config, compute.world, on_event, takes_timm=takes_timm)
    if init.checkpoint is not None:
        config = with_models_intensity(config, init.checkpoint.settings)
    architecture = init.checkpoint.architecture if init.checkpoint else scratch_architecture(config)
    compute = with_step_arithmetic(
        config, compute, replace(architecture, image_size=init.size), compiled=config.compile, on_event=on_event
    )
    return FinetuneSetup(config, compute, init, on_event)


@dataclass(frozen=True)
class FinetuneData(Generic[Images]):
    """Training and validation images of a run, all with valid labels.

    Attributes:
        classes: Class names, in label order.
        bad: Training images that are left out.
        measured_on: Name of the validation images, for the report.
        is_apart: Whether they are none of the training images.
        has_own_validation: Whether they are a set of their own (`--val`, a split), none of those opened for training.
        findings: What the preflight is to tell of the annotations.
    """

    training: Images
    measured: Images
    classes: tuple[str, ...]
    bad: tuple[Bad, ...]
    measured_on: str
    is_apart: bool = field(default=True, kw_only=True)
    has_own_validation: bool = field(default=False, kw_only=True)
    findings: tuple[Finding, ...] = field(default=(), kw_only=True)

    @property
    def held_out(self) -> int:
        """Number of images of DATA that are measured and not trained on."""
        return len(self.measured) if self.is_apart and not self.has_own_validation else 0


class FinetunedTask(EMATask):
    """Base class of finetuning tasks in the training loop.

    Block l has learning rate lr * layer_decay^(depth + 1 - l), the embedding that of block 0, the head lr.

    Attributes:
        curve: Shape of the learning rate schedule after the warm-up, for display.
    """

    name = "finetune"
    config: FinetuneConfig
    model: Any
    curve = "cosine"

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        model: nn.Module,
        classes: tuple[str, ...],
        val: Source,
        compute: Compute,
        normalization: Normalization = IMAGENET,
    ) -> None:
        self.config, self.plan, self.classes, self.val, self.compute = config, plan, classes, val, compute
        self.normalization = normalization
        self.model = model.to(compute.device)
        self.attention = self.model.choose_attention(plan.micro_batch, compute)
        self.wrap()
        self.init_ema(config.ema)
        groups = parameter_groups(
            self.model, config.weight_decay, config.layer_decay, decay_bias_tables=config.decay_bias_tables
        )
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)

    def wrap(self) -> None:
        """Wraps the model for the training step: compilation, gradient averaging."""
        self.wrap_parallel(
            self.compute,
            compile_step=bool(self.config.compile),
            all_used=self.uses_all_parameters,
            compression=self.config.grad_compression,
        )

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every parameter has a gradient in every step."""
        return True

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    @property
    def measured(self) -> Any:
        """The model that is evaluated: the moving average if there is one."""
        return self.model if self.averaged is None else self.averaged

    def measuring_cost(self) -> float:
        return len(self.val) / 2

    def refuse_bad(self, bad: list[Bad]) -> None:
        """`leave_out` of the validation images."""
        self.leave_out(bad, len(self.val))

    def checkpoint_config(self) -> dict[str, Any]:
        how = self.config.resize_positions
        return {
            "architecture": self.model.architecture.as_dict(),
            "classes": list(self.classes),
            **self.own_config(),
            **({} if how == DEFAULT else {"resize_positions": how}),
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "mean": self.normalization[0],
            "std": self.normalization[1],
            **intensity_entry(self.config),
        }

    def own_config(self) -> dict[str, Any]:
        """Entries of `checkpoint_config` that only this task has."""
        return {}

    def plan_rows(self) -> dict[str, str]:
        """Returns the rows that display the plan."""
        return {
            **self.about(),
            **describe_plan(self, self.plan, self.curve),
            "layer decay": f"{self.config.layer_decay:g}",
            "checkpoint size": size_text(checkpoint_bytes(self)),
            **arithmetic_row(self.compute),
            "hardware": describe(self.compute),
        }

    @abstractmethod
    def about(self) -> dict[str, str]:
        """Returns the first rows of the plan: model, head, images, cost."""

    def about_images(self) -> str:
        height, width = self.model.architecture.image_size
        return f"{height} x {width} pixels, {len(self.classes)} classes"

    @property
    def family(self) -> str:
        """What the backbone is, for display."""
        return "ViT" if isinstance(self.model.architecture, TimmArchitecture) else "BEiT"

    @property
    def origin(self) -> str:
        """Where the weights are from, for display: `from runs/mine`, `with random weights`."""
        return "with random weights" if self.config.init == RANDOM else f"from {self.config.init}"

    def about_head(self, head: nn.Module, where: str) -> dict[str, str]:
        """`about` of a backbone with a head.

        Args:
            where: Features that the head takes, for display.
        """
        architecture = self.model.architecture
        kind, positions = "BEiT", f", {architecture.positions} positions"
        if isinstance(architecture, TimmArchitecture):
            kind, positions = f"timm's {architecture.name}", ""
        return {
            "model": f"{kind} {self.origin}, {size(self.model):,} parameters{positions}",
            "head": f"{self.model.head_name}, {size(head):,} of these parameters, {where}",
            "images of": self.about_images(),
            "backbone": f"{forward_flops(architecture, 0, 0) / 1e9:.3g} GFLOP an image forward",
        }


def size(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def run_finetuning(
    begun: FinetuneSetup,
    data: FinetuneData[Any],
    transform: Transform,
    task: FinetunedTask,
    kind: type[Report],
    card: Callable[[Report], FinetunedCard],
    own: Callable[[dict[str, float]], dict[str, Any]] = lambda metrics: {},
) -> Report | dict[str, Any]:
    """Trains and returns the report; with `dry_run`, returns the plan as a dict instead.

    Args:
        transform: Transform of a training image.
        kind: Dataclass of the report.
        card: Maps the report to the task's part of the model card.
        own: Maps the last metrics to the fields of the report that are not simply one of them.
    """
    config = begun.config
    task.has_own_validation = data.has_own_validation

    def report(finished: Finished) -> Report:
        metrics = finished.metrics
        return finished.report(
            kind,
            task=config.task,
            classes=len(task.classes),
            images=int(metrics["images"]),
            measured_on=measured_text(data.measured_on, len(task.left_out)),
            **own(metrics),
        )

    findings = Preflight(
        config=config,
        training=data.training,
        measured=data.measured,
        is_apart=data.is_apart,
        size=min(begun.init.size),
        from_scratch=begun.init.checkpoint is None,
        labelled=data.training.classes is not None or bool(data.training.label_names),
        others=chain(data.findings, given_init_findings(config.init, begun.init.checkpoint)),
    ).run(begun.compute.world, begun.on_event)
    job = Job(
        title="Finetuning",
        config=config,
        compute=begun.compute,
        on_event=begun.on_event,
        data=data,
        transform=transform,
        plan=task.plan,
        task=task,
        rows=task.plan_rows(),
        report=report,
        card=lambda report, hardware: finetuning_card(config, report, card(report), hardware),
        document={"preflight": findings},
    )
    return run_job(config, begun.compute, begun.on_event, lambda session: job)
