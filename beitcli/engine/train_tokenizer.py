"""`beit train-tokenizer`: trains a visual tokenizer of a kind in `tokenizers/kinds/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from beitcli.config.intensity import intensity_entry
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.loading.batches import ordered_batches
from beitcli.data.loading.sampler import rank_indices
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import CenterTransform, TokenizerTransform
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.io.outputs import to_picture
from beitcli.engine.tokenizer_teacher import PatchTeacher, check_same_teacher, teacher_for
from beitcli.engine.trainer.bad_images import Bad, joined
from beitcli.engine.trainer.data import HeldOut, hold_out, measured_text, open_images
from beitcli.engine.trainer.job import Finished, Job
from beitcli.engine.trainer.metric_log import check_writers
from beitcli.engine.trainer.model_card import tokenizer_card
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.preflight.check import Preflight
from beitcli.engine.trainer.run_job import run_job
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan, make_plan
from beitcli.engine.trainer.task import RunSession, Task, Tensors, never_stop
from beitcli.errors import UsageError
from beitcli.pictures.canvas import PREVIEW_TEXT, contact_sheet
from beitcli.pictures.reconstruction import reconstruction_panels
from beitcli.runtime.compute.device import Compute, describe, is_small_step, join_compute, one_thread
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.compute.lr_schedules import warmup_cosine
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.runtime.metric_text import size_text
from beitcli.tokenizers.base import TokenizerModel, to_unit
from beitcli.tokenizers.dvae_loss import codebook_usage, psnr
from beitcli.tokenizers.kind import Objective, architecture_of, check_teacher, kind_of, untrained

_HELD_OUT = 1024
_AT_ONCE = 128  # images per forward pass of an evaluation


@dataclass(frozen=True)
class TrainTokenizerReport:
    """Report of a trained tokenizer; mae, psnr, codes_used and perplexity are those of the `measured_on` images.

    Attributes:
        mae: Of pixels in [0, 1]; None if the kind has no decoder, as are `mae_normalized` and `psnr`.
        mae_normalized: Of pixels in [-1, 1] (0.5 / 0.5): twice `mae`.
        total_seconds: Of training (`seconds`) and measuring, all attempts together.
        further: Metrics that have no field of their own.
    """

    run: str
    checkpoint: str
    steps: int
    vocab_size: int
    codes_used: int
    perplexity: float
    commonest_share: float
    mae: float | None
    psnr: float | None
    mae_normalized: float | None
    measured_on: str
    images_per_second: float
    seconds: float
    measuring_seconds: float
    total_seconds: float
    further: dict[str, float] = field(default_factory=dict)


class TokenizerTask(Task):
    """Trains the network of a tokenizer kind with its objective."""

    name, kind = "tokenizer", "tokenizer"
    config: TrainTokenizerConfig
    model: TokenizerModel

    def __init__(
        self,
        config: TrainTokenizerConfig,
        plan: Plan,
        held_out: Source,
        compute: Compute,
        teacher: PatchTeacher | None = None,
    ) -> None:
        self.config, self.plan, self.held_out, self.compute, self.teacher = config, plan, held_out, compute, teacher
        torch.manual_seed(config.seed)
        self.model = untrained(config, teacher).to(compute.device)
        if compute.device.type == "cpu":
            self.model.to(memory_format=torch.channels_last)  # as its images have
        named = {} if teacher is None else {"teacher": teacher}
        self.objective: Objective = kind_of(config).objective(self.model, config, plan.steps, compute.world, **named)
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)
        self.wrap_parallel(compute, compression=config.grad_compression)

    def running(self) -> AbstractContextManager[None]:
        is_small = is_small_step(self.compute.device, self.plan.micro_batch * self.config.size**2)
        return one_thread() if is_small else nullcontext()

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        world, here = self.compute.world, len(batch["images"])
        mine = torch.from_numpy(rank_indices(self.plan.batch_size, world.rank, world.size))
        places = mine if len(mine) == here else torch.arange(here)  # a dry run has smaller batches
        self.objective.before_step(step, batch["images"], places)
        if self.objective.purpose is None:
            return batch
        seeds = [keyed_integer(self.config.seed, self.objective.purpose, step, place) for place in places.tolist()]
        return batch | {"noise": torch.tensor(seeds)}  # stays on the CPU, where generators take their seeds

    @contextmanager
    def trial(self) -> Iterator[None]:
        with super().trial(), self.objective.trial():
            yield

    def after_step(self, step: int) -> None:
        self.objective.after_step(step)

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        return self.objective.loss(self.forward, batch["images"], batch.get("noise"))

    def log_metrics(self) -> dict[str, float]:
        return self.objective.log_metrics()

    def measuring_cost(self) -> float:
        return len(self.held_out) / 2

    @torch.no_grad()
    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns metrics of held-out images in fp32.

        PSNR (dB) and MAE (of pixels in [0, 1], and in [-1, 1]) if the kind has a decoder; number of codes used,
        perplexity and share of the most frequent code; the metrics of the kind.
        """
        model, compute, world, size = self.model, self.compute, self.compute.world, self.config.size
        counts = torch.zeros(model.vocab_size, dtype=torch.int64, device=compute.device)
        parts: list[dict[str, float]] = []  # sums per batch
        bad: list[list[Bad]] = []
        grid = (size // model.downsample, size // model.downsample)
        for batch in self.batching(_AT_ONCE, check_stop).batches(self.held_out, CenterTransform(size=size)):
            bad.append(batch.bad)
            if not len(batch):
                parts.append({})
                continue
            images = to_unit(batch.to(compute.device)["images"])
            tokens = model.encode(model.preprocess(images))
            counts += torch.bincount(tokens.flatten(), minlength=model.vocab_size)
            own = self.objective.held_out_metrics(images, tokens)
            sums = {name: float(values.cpu().double().sum()) for name, values in own.items()}
            if model.can_decode:
                difference = (model.decode(tokens, grid) - images).cpu().double()
                sums |= {"|error|": float(difference.abs().sum()), "error^2": float(difference.square().sum())}
            parts.append(sums | {"images": len(images), "values": images.numel()})
        self.leave_out(joined(world.gather_interleaved(bad)), len(self.held_out))
        total: dict[str, float] = {}
        for part in world.gather_interleaved(parts):
            total |= {name: total.get(name, 0.0) + value for name, value in part.items()}
        number, values = total.pop("images"), total.pop("values")
        metrics: dict[str, float] = {}
        if model.can_decode:
            mae = total.pop("|error|") / values
            metrics = {"psnr": psnr(total.pop("error^2") / values), "mae": mae, "mae_normalized": 2 * mae}
        counts = world.all_reduce_sum(counts)
        used, perplexity = codebook_usage(counts)
        share = float(counts.max() / counts.sum())
        metrics |= {"codes_used": used, "perplexity": perplexity, "commonest_share": share}
        metrics["measured_tokens"] = int(counts.sum())
        return metrics | {name: value / number for name, value in total.items()}

    @torch.no_grad()
    def preview(self, images: int) -> Image.Image | None:
        """Draws the first held-out images beside what the decoder makes of their tokens; None without a decoder."""
        model, size = self.model, self.config.size
        loaded = ordered_batches(self.held_out, CenterTransform(size=size), batch_size=images, workers=0)
        batch = next(loaded, None) if model.can_decode else None
        if batch is None or not len(batch):
            return None
        originals = to_unit(batch.to(self.compute.device)["images"])
        tokens = model.encode(model.preprocess(originals))
        decoded = model.decode(tokens, (size // model.downsample, size // model.downsample))
        pairs = zip(map(to_picture, originals), map(to_picture, decoded), strict=True)
        return contact_sheet([reconstruction_panels(*pair) for pair in pairs], PREVIEW_TEXT)

    def checkpoint_config(self) -> dict[str, Any]:
        config, teacher = self.config, self.teacher
        architecture = architecture_of(config, teacher)
        stored = {"architecture": architecture, "size": config.size, "tokenizer_kind": config.kind}
        stored |= intensity_entry(config)
        if teacher is not None:
            stored["teacher"] = {"reference": teacher.reference, "sha256": teacher.sha256}
        return stored


def train_tokenizer(config: TrainTokenizerConfig, on_event: OnEvent = ignore) -> TrainTokenizerReport | dict[str, Any]:
    """Trains a tokenizer and returns the report; with `dry_run`, returns the plan as a dict instead."""
    check_teacher(config)
    factor = token_pixels(config)
    if config.size < factor or config.size % factor:
        raise UsageError(
            f"--size {config.size} is not divided by {factor}, the pixels that a token stands for along each side.",
            f"Give a multiple of {factor}.",
        )
    compute = join_compute(config)
    check_writers(config, compute.world)
    on_event = compute.world.rank_zero_only(on_event)
    source = open_images(config, labelled=False, size=2 * config.size, on_event=on_event, world=compute.world)
    held = hold_out(source, _HELD_OUT, config.seed, compute.world)
    findings = Preflight(
        config=config,
        training=held.training,
        measured=held.measured,
        is_apart=held.is_apart,
        size=config.size,
        from_scratch=True,
    ).run(compute.world, on_event)
    teacher = teacher_for(config, (config.size // factor, config.size // factor), compute, on_event)

    def prepare(session: RunSession | None) -> Job[TrainTokenizerReport]:
        if session is not None and teacher is not None:
            compute.world.run_on_rank_zero(partial(check_same_teacher, teacher, session.run))
        job = tokenizer_job(config, held, compute, on_event, teacher)
        return replace(job, document={"preflight": findings})

    return run_job(config, compute, on_event, prepare)


def token_pixels(config: TrainTokenizerConfig) -> int:
    """Returns the side of a token in pixels, for the tokenizer that `config` describes."""
    with meta_device():
        return untrained(config).downsample


def tokenizer_job(
    config: TrainTokenizerConfig,
    data: Source | HeldOut,
    compute: Compute,
    on_event: OnEvent,
    teacher: PatchTeacher | None = None,
) -> Job[TrainTokenizerReport]:
    """Defines the training; pretrain uses it for its own tokenizer, too.

    Args:
        data: An opened source, or what is held out of it already.
    """
    held = data if isinstance(data, HeldOut) else hold_out(data, _HELD_OUT, config.seed, compute.world)
    plan = make_plan(config, held.training)
    task = TokenizerTask(config, plan, held.measured, compute, teacher)

    def report(finished: Finished) -> TrainTokenizerReport:
        return finished.report(
            TrainTokenizerReport,
            steps=finished.state.step,
            vocab_size=task.model.vocab_size,
            mae=finished.metrics.get("mae"),
            psnr=finished.metrics.get("psnr"),
            mae_normalized=finished.metrics.get("mae_normalized"),
            codes_used=int(finished.metrics["codes_used"]),
            measured_on=measured_text(held.name, len(task.left_out)),
        )

    return Job(
        title="Tokenizer",
        config=config,
        compute=compute,
        on_event=on_event,
        data=held,
        transform=TokenizerTransform(seed=config.seed, size=config.size, min_crop=config.min_crop),
        plan=plan,
        task=task,
        rows=plan_rows(task, plan, config),
        report=report,
        card=partial(tokenizer_card, config, kind_of(config).title),
    )


def plan_rows(task: TokenizerTask, plan: Plan, config: TrainTokenizerConfig) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    grid = config.size // task.model.downsample
    teacher = task.teacher
    taught = {}
    if teacher is not None:
        pixels = f"{teacher.size[0]} x {teacher.size[1]} pixels"
        taught["teacher"] = f"{teacher.reference}, {teacher.width} numbers a patch of {pixels}"
    with task.running():
        hardware = describe(task.compute)
    return {
        "model": f"{kind_of(config).title}, {parameters:,} parameters, {task.model.vocab_size:,} codes",
        "images of": f"{config.size} x {config.size} pixels to {grid} x {grid} tokens",
        **taught,
        **describe_plan(task, plan),
        "checkpoint size": size_text(checkpoint_bytes(task)),
        "hardware": hardware,
    }
