"""What every training job does before its first step: run folder, data, plan, and the rehearsal of `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import torch

from beitcli import __version__
from beitcli.config.common import Training
from beitcli.config.resolve import dump_toml
from beitcli.data.loader import Batch
from beitcli.data.order import select_limit, split_holdout
from beitcli.data.sources import open_data
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, Progress
from beitcli.engine.training import Plan, Task, optimizer_step
from beitcli.errors import DataError
from beitcli.runtime.device import Compute
from beitcli.runtime.optim import set_learning_rate
from beitcli.runtime.run_folder import RunFolder

_REHEARSAL_STEPS = 4


def run_path(config: Training) -> Path:
    """`--out`, or runs/COMMAND-DATE-TIME."""
    if config.out:
        return Path(config.out)
    base = Path("runs") / f"{config.command}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def open_run(config: Training) -> RunFolder:
    """The run folder, with config.toml in it."""
    run = RunFolder.create(run_path(config), resume=config.resume)
    header = f"beit {__version__}. Repeat: beit {config.command} --config {run.path}/config.toml --out NEW"
    run.write_text("config.toml", dump_toml(config, header))
    return run


def open_images(config: Training, *, labelled: bool, size: int, on_event: OnEvent) -> Source:
    """The training data, cut to `--limit`."""
    source = open_data(config.data, split=config.split, role="train", labelled=labelled, sample_size=size)
    if config.limit is not None and config.limit < len(source):
        source = Subset(source, select_limit(source, config.limit, config.seed))
    on_event(Note(f"Data: {len(source):,} images" + (f" of {len(source.classes)} classes" if source.classes else "")))
    return source


def hold_out(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """(training images, images kept out of it): `count`, a twentieth of the data at most.

    Too little data to keep any out (under 20 images) is measured on itself: the two are then the same.
    """
    count = min(count, len(source) // 20)
    if count < 1:
        return source, source
    training, held_out = split_holdout(source, count, seed)
    return Subset(source, training), Subset(source, held_out)


def make_plan(config: Training, source: Source) -> Plan:
    """Steps, warm-up (a fifth of the run at most) and intervals, all in optimizer steps."""
    images = len(source)
    if images < 1:
        raise DataError("No images are left to train on.", "Give more data or a larger --limit.")
    per_epoch = images / config.batch_size
    steps = config.steps if config.steps is not None else max(1, round((config.epochs or 0) * per_epoch))
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round((config.warmup_epochs or 0) * per_epoch)
    return Plan(
        seed=config.seed,
        images=images,
        steps=steps,
        batch_size=config.batch_size,
        micro_batch=min(config.micro_batch or config.batch_size, config.batch_size),
        warmup_steps=min(warmup, steps // 5),
        clip=config.clip,
        save_every=config.save_every or max(1, min(2000, -(-steps // 10))),
        log_every=config.log_every or max(1, min(50, steps // 100)),
        keep=config.keep,
        max_bad=config.max_bad,
        data_fingerprint=source.fingerprint(),
    )


def describe_plan(plan: Plan, config: Training) -> dict[str, str]:
    """The plan in rows for a person."""
    return {
        "images": f"{plan.images:,}",
        "steps": f"{plan.steps:,} of {plan.batch_size} images ({plan.epoch(plan.steps):.4g} epochs)",
        "micro-batch": f"{plan.micro_batch} ({-(-plan.batch_size // plan.micro_batch)} a step)",
        "learning rate": f"{config.lr:g}, {plan.warmup_steps:,} steps of warm-up, cosine to {config.min_lr:g}",
        "weight decay": f"{config.weight_decay:g}",
        "clip": f"{plan.clip:g}" if plan.clip is not None else "none",
        "checkpoint": f"every {plan.save_every:,} steps, {plan.keep} kept",
    }


def checkpoint_bytes(task: Task) -> int:
    """Of one checkpoint: weights, and AdamW's two moments of them."""
    return sum(parameter.numel() for parameter in task.model.parameters()) * 4 * 3


def rehearse(
    task: Task, plan: Plan, batches_from: Callable[[int, int], Iterator[Batch]], compute: Compute, on_event: OnEvent
) -> tuple[float, float]:
    """Runs a few real steps and throws them away.

    Returns:
        Seconds a step (loading included, the first step left out), and its spread (largest minus smallest).
    """
    taken = []
    batches = batches_from(0, _REHEARSAL_STEPS + 1)
    task.model.train()
    for step in range(_REHEARSAL_STEPS + 1):
        start = time.perf_counter()
        set_learning_rate(task.optimizer, task.learning_rate(step))
        tensors = task.before_step(step, next(batches).to(compute.device))
        optimizer_step(task, plan, tensors, compute, compute.scaler(), {})
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
        on_event(Progress("rehearsal", step + 1, _REHEARSAL_STEPS + 1))
    steady = sorted(taken[1:])
    return steady[len(steady) // 2], steady[-1] - steady[0]
