"""`beit train-tokenizer`: a discrete VAE of one's own (DALL-E's objective, arXiv 2102.12092, section 2.1).

    logits = encoder(images)                          (B, V, h, w)
    codes = gumbel_softmax(logits, temperature)       relaxed one-hot; the temperature falls by a cosine
    loss = reconstruction(decoder(codes), images) + kl_weight * KL(q || uniform) + usage_weight * KL(mean q || uniform)

with q = softmax(logits) of a patch, and its mean over the batch. The last term keeps every code in use: without it a
short run used 56 of 256 (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.loading.batches import ordered_batches
from beitcli.data.loading.sampler import places_of
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import CenterView, TokenizerView
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.trainer.data import hold_out, open_images
from beitcli.engine.trainer.distributed_eval import synchronized_batches
from beitcli.engine.trainer.job import Finished, Job, run_job
from beitcli.engine.trainer.model_card import tokenizer_card
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.setup import checkpoint_bytes, describe_plan, make_plan
from beitcli.engine.trainer.task import Task, Tensors, never_stop
from beitcli.runtime.compute.device import Compute, choose_workers, describe, join_compute, threads_for
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.compute.lr_schedules import cosine, warmup_cosine
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.tokenizers.base import to_unit
from beitcli.tokenizers.dvae import DiscreteVAE, DVAEArchitecture
from beitcli.tokenizers.dvae_loss import codebook_usage, dvae_loss, psnr

_HELD_OUT = 1024


@dataclass(frozen=True)
class TrainTokenizerReport:
    """What was made; mae, psnr, codes_used and perplexity are of held-out images.

    Attributes:
        further: Metrics that have no field of their own.
    """

    run: str
    checkpoint: str
    steps: int
    vocab_size: int
    codes_used: int
    perplexity: float
    commonest_share: float
    mae: float
    psnr: float
    measured_on: str
    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


class TokenizerTask(Task):
    """A discrete VAE in the training loop."""

    name, kind = "tokenizer", "tokenizer"
    model: DiscreteVAE

    def __init__(self, config: TrainTokenizerConfig, plan: Plan, held_out: Source, compute: Compute) -> None:
        self.config, self.plan, self.held_out, self.compute = config, plan, held_out, compute
        torch.manual_seed(config.seed)
        self.model = DiscreteVAE(tokenizer_architecture(config)).to(compute.device)
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)
        self.wrap_parallel(compute, compression=config.grad_compression)
        self.temperature = 1.0
        self.kl_weight = 0.0

    def running(self) -> AbstractContextManager[None]:
        """One thread where a step is too small to share."""
        return threads_for(self.compute.device, self.plan.micro_batch * self.config.size**2)

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        self.temperature = cosine(1.0, self.config.temperature_end, step, self.plan.steps * 4 // 5)
        self.kl_weight = cosine(0.0, self.config.kl_weight, step, self.plan.steps * 3 // 10)
        world, here = self.compute.world, len(batch["images"])
        mine = places_of(self.plan.batch_size, world.rank, world.size)
        places = mine.tolist() if len(mine) == here else range(here)  # a rehearsal has smaller batches
        seeds = [keyed_integer(self.config.seed, "gumbel", step, place) for place in places]
        return batch | {"noise": torch.tensor(seeds)}  # stays in the CPU's memory, where generators take their seeds

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        images = to_unit(batch["images"])
        loss, figures = dvae_loss(
            self.forward,
            images,
            self.temperature,
            self.kl_weight,
            self.config.reconstruction,
            self.config.usage_weight,
            noise=batch.get("noise"),
            mean_over=self.compute.world.all_reduce_weighted_mean,
        )
        return loss, {name: value for name, value in figures.items() if name != "loss"}

    def log_metrics(self) -> dict[str, float]:
        return {"temperature": self.temperature, "kl_weight": self.kl_weight}

    @torch.no_grad()
    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Held-out images through tokens and back."""
        workers = choose_workers(self.config.workers, self.compute.device, self.compute.world.local_size)
        return measure_tokenizer(self.model, self.held_out, self.config.size, self.compute, workers, check_stop)

    def checkpoint_config(self) -> dict[str, Any]:
        return {"architecture": asdict(self.model.architecture), "size": self.config.size}


def tokenizer_architecture(config: TrainTokenizerConfig) -> DVAEArchitecture:
    return DVAEArchitecture(
        vocab_size=config.vocab_size,
        width=config.width,
        groups=config.groups,
        blocks_per_group=config.blocks_per_group,
        init_gain=math.sqrt(2),
        output_channels=6 if config.reconstruction == "logit-laplace" else 3,
    )


@torch.no_grad()
def measure_tokenizer(
    model: DiscreteVAE,
    source: Source,
    size: int,
    compute: Compute,
    workers: int,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """psnr (dB), mae, codes_used, perplexity and the commonest code's share over a source, fp32."""
    counts = torch.zeros(model.vocab_size, dtype=torch.int64, device=compute.device)
    parts: list[tuple[float, float, int]] = []  # of each batch: sums of |error| and error^2, values
    view, world = CenterView(size=size), compute.world
    batches = ordered_batches(source, view, batch_size=128, workers=workers, share=(world.rank, world.size))
    for batch in synchronized_batches(batches, len(source), 128, world, check_stop):
        if not len(batch):
            parts.append((0.0, 0.0, 0))
            continue
        images = to_unit(batch.to(compute.device)["images"])
        tokens = model.encode(images)
        grid = (images.shape[2] // model.downsample, images.shape[3] // model.downsample)
        difference = (model.decode(tokens, grid) - images).cpu().double()
        counts += torch.bincount(tokens.flatten(), minlength=model.vocab_size)
        parts.append((float(difference.abs().sum()), float(difference.square().sum()), difference.numel()))
    absolute, squared, pixels = map(sum, zip(*world.in_turn(parts), strict=True))
    counts = world.all_reduce_sum(counts)
    used, perplexity = codebook_usage(counts)
    return {
        "psnr": psnr(squared / pixels),
        "mae": absolute / pixels,
        "codes_used": used,
        "perplexity": perplexity,
        "commonest_share": float(counts.max() / counts.sum()),
    }


def train_tokenizer(config: TrainTokenizerConfig, on_event: OnEvent = ignore) -> TrainTokenizerReport | dict[str, Any]:
    """Trains a tokenizer; with `dry_run`, a dict of the plan instead."""
    compute = join_compute(config)
    on_event = compute.world.rank_zero_only(on_event)
    source = open_images(config, labelled=False, size=2 * config.size, on_event=on_event, world=compute.world)
    return run_job(config, compute, on_event, lambda session: tokenizer_job(config, source, compute, on_event))


def tokenizer_job(
    config: TrainTokenizerConfig, source: Source, compute: Compute, on_event: OnEvent
) -> Job[TrainTokenizerReport]:
    """The training on an opened source, which is how pretrain makes its own tokenizer, too."""
    held = hold_out(source, _HELD_OUT, config.seed, compute.world)
    plan = make_plan(config, held.training)
    task = TokenizerTask(config, plan, held.measured, compute)

    def report(finished: Finished) -> TrainTokenizerReport:
        return finished.report(
            TrainTokenizerReport,
            steps=finished.state.step,
            vocab_size=config.vocab_size,
            codes_used=int(finished.metrics["codes_used"]),
            measured_on=held.name,
        )

    return Job(
        title="Tokenizer",
        config=config,
        compute=compute,
        on_event=on_event,
        data=held,
        view=TokenizerView(seed=config.seed, size=config.size),
        plan=plan,
        task=task,
        rows=plan_rows(task, plan, config),
        report=report,
        card=partial(tokenizer_card, config),
    )


def plan_rows(task: TokenizerTask, plan: Plan, config: TrainTokenizerConfig) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    grid = config.size // task.model.downsample
    return {
        "model": f"discrete VAE, {parameters:,} parameters, {config.vocab_size} codes",
        "images of": f"{config.size} x {config.size} pixels to {grid} x {grid} tokens",
        **describe_plan(plan, config),
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }
