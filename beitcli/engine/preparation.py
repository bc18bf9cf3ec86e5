"""What every training job does before its first step: run folder, data, plan, and the rehearsal of `--dry-run`."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beitcli import __version__
from beitcli.config.common import Training
from beitcli.config.resolve import dump_toml
from beitcli.data.loader import Batch, Masking, View, training_batches
from beitcli.data.order import select_limit, split_holdout
from beitcli.data.sources import open_data
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.engine.bad_images import Bad
from beitcli.engine.compile_ahead import compile_ahead
from beitcli.engine.events import Note, OnEvent, Planned, Progress, openings
from beitcli.engine.micro_batch import fitting
from beitcli.engine.training import Plan, Task, optimizer_step
from beitcli.engine.transfer import on_device
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.device import Compute, choose_workers
from beitcli.runtime.distributed import ALONE, World
from beitcli.runtime.matrix_rate import matrix_rate
from beitcli.runtime.optim import set_learning_rate
from beitcli.runtime.run_folder import FollowedRun, RunFolder

_REHEARSAL_STEPS = 4
_MICRO_BATCH = 128
_MEASURED_WITHOUT_HOLDOUT = 512


def run_path(config: Training) -> Path:
    """`--out`, or runs/COMMAND-DATE-TIME."""
    if config.out:
        return Path(config.out)
    base = Path("runs") / f"{config.command}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def resume_command(config: Training, run: Path) -> str:
    """What a person types to go on with a run, with as many processes."""
    words = ["beit", config.command, "--out", shlex.quote(str(run)), "--resume"]
    if config.gpus > 1:
        words += ["--gpus", str(config.gpus)]
        words += ["--device", config.device] if config.device != "auto" else []
    if config.nodes > 1:
        words += ["--nodes", str(config.nodes), "--rdzv-endpoint", config.rdzv_endpoint or "HOST:PORT"]
    return f"Go on with: {' '.join(words)}"


def open_run(config: Training, world: World = ALONE) -> RunFolder:
    """The run folder, with config.toml in it; the first process makes it, the others follow what it does."""
    made: list[RunFolder] = []

    def make() -> Path:
        run = RunFolder.create(run_path(config), resume=config.resume)
        header = f"beit {__version__}. Repeat: beit {config.command} --config {run.path}/config.toml --out NEW"
        run.write_text("config.toml", dump_toml(config, header))
        made.append(run)
        return run.path

    path = world.first(make)
    return made[0] if world.is_first else FollowedRun(path)


def open_images(config: Training, *, labelled: bool, size: int, on_event: OnEvent, world: World = ALONE) -> Source:
    """The training data, cut to `--limit`; the other processes open it when the first one's listing of it is kept."""
    require_an_image_each(config.batch_size, world)
    source = world.first_then_others(
        lambda: open_data(
            config.data,
            split=config.split,
            role="train",
            labelled=labelled,
            sample_size=size,
            nul_separated=config.nul,
            on_progress=openings(on_event),
        )
    )
    if config.limit is not None and config.limit < len(source):
        chosen = np.sort(select_limit(source, config.limit, config.seed))  # parquet's groups stay together
        source = Subset(source, chosen)
    on_event(Note(f"Data: {len(source):,} images" + (f" of {len(source.classes)} classes" if source.classes else "")))
    return source


def require_an_image_each(batch_size: int, world: World) -> None:
    """Raises UsageError where a process would have no image of a step."""
    if batch_size < world.size:
        raise UsageError(
            f"--batch-size {batch_size} leaves some of {world.size} processes without an image.",
            f"Give {world.size} or more: it counts the images of all processes.",
        )


@dataclass(frozen=True)
class HeldOut:
    """What a run trains on and what it is measured on.

    Attributes:
        measured: Images kept out of training; some of the training images where there are too few to keep any.
        bad: Unreadable images among those that were kept out.
    """

    training: Source
    measured: Source
    bad: tuple[Bad, ...]
    is_apart: bool

    @property
    def name(self) -> str:
        return f"{len(self.measured)} {'held-out' if self.is_apart else 'training'} images"


def hold_out(source: Source, count: int, seed: int, world: World = ALONE) -> HeldOut:
    """Keeps `count` images, a twentieth of the data at most, out of training to measure on.

    They are decoded once here, so that a figure never rests on images that cannot be read; by the first process.
    """
    kept = min(count, len(source) // 20)
    if kept:
        training, held_out = split_holdout(source, kept, seed)
        bad = world.first(lambda: tuple(_unreadable(source, held_out)))
        readable = np.setdiff1d(held_out, [record[0] for record in bad])
        if len(readable):
            return HeldOut(Subset(source, training), Subset(source, readable), bad, True)
    some = select_limit(source, min(len(source), _MEASURED_WITHOUT_HOLDOUT), seed)
    bad = world.first(lambda: tuple(_unreadable(source, some)))
    readable = np.setdiff1d(some, [record[0] for record in bad])
    if not len(readable):
        raise DataError(
            f"None of {len(some)} images can be read, the first: {bad[0][1]}: {bad[0][2]}.", "Check the data."
        )
    return HeldOut(source, Subset(source, readable), bad, False)


def _unreadable(source: Source, indices: np.ndarray) -> Iterator[Bad]:
    source.expect(indices)
    for index in indices.tolist():
        try:
            source.image(index)
        except BadImage as error:
            yield index, source.path(index), error.message


def make_plan(config: Training, source: Source) -> Plan:
    """Steps, warm-up and intervals, all in optimizer steps; a warm-up longer than the run becomes a fifth of it."""
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
        micro_batch=min(config.micro_batch or _MICRO_BATCH, config.batch_size),
        warmup_steps=warmup if warmup < steps else steps // 5,
        clip=config.clip,
        save_every=config.save_every or max(1, min(2000, -(-steps // 10))),
        log_every=config.log_every or max(1, min(50, steps // 100)),
        keep=config.keep,
        max_bad=config.max_bad,
        data_fingerprint=source.fingerprint(),
        finds_micro_batch=config.micro_batch is None,
    )


def describe_plan(plan: Plan, config: Training) -> dict[str, str]:
    """The plan in rows for a person."""
    return {
        "images": f"{plan.images:,}",
        "steps": f"{plan.steps:,} of {plan.batch_size} images ({plan.epoch(plan.steps):.4g} epochs)",
        "micro-batch": _micro_batches(plan),
        "learning rate": f"{config.lr:g}, {plan.warmup_steps:,} steps of warm-up, cosine to {config.min_lr:g}",
        "weight decay": f"{config.weight_decay:g}",
        "clip": f"{plan.clip:g}" if plan.clip is not None else "none",
        "checkpoint": f"every {plan.save_every:,} steps, {plan.keep} kept",
    }


def _micro_batches(plan: Plan) -> str:
    return f"{plan.micro_batch} ({-(-plan.batch_size // plan.micro_batch)} a step)"


def checkpoint_bytes(task: Task) -> int:
    """Of one checkpoint: weights, and AdamW's two moments of them."""
    return sum(parameter.numel() for parameter in task.model.parameters()) * 4 * 3


def stream(
    config: Training,
    source: Source,
    view: View,
    compute: Compute,
    images_seen: int,
    steps: int,
    *,
    masking: Masking | None = None,
    batch_size: int | None = None,
) -> Iterator[Batch]:
    """This process's part of the job's batches from `images_seen` on."""
    world = compute.world
    return training_batches(
        source,
        view,
        seed=config.seed,
        batch_size=batch_size or config.batch_size,
        images_seen=images_seen,
        steps=steps,
        workers=choose_workers(config.workers, compute.device, world.local_size),
        masking=masking,
        repeats=getattr(config, "repeats", 1),
        pin_memory=compute.device.type == "cuda",
        share=(world.rank, world.size),
    )


def rehearse(
    task: Task,
    plan: Plan,
    config: Training,
    rows: dict[str, str],
    batches_of: Callable[[int, int], Iterator[Batch]],
    compute: Compute,
    on_event: OnEvent,
    before: float = 0.0,
    flops: float = 0.0,
) -> dict[str, Any]:
    """Tells the plan, times a few micro-batches, loading included, and tells what the run will take.

    What the micro-batches learn is lost.

    Args:
        batches_of: (size, steps) to batches.
        before: Seconds that the `own` tokenizer takes first.
        flops: Of an image, forward and backward; 0 where they are not known.

    Returns:
        The document of `--dry-run`.
    """
    on_event(Planned(f"{task.name} (dry run)", rows))
    found: dict[str, str] = {}
    if plan.finds_micro_batch and compute.device.type == "cuda":
        plan = tried(task, plan, batches_of, compute)
        found = {"micro-batch": _micro_batches(plan)}
    micro = replace(plan, batch_size=min(plan.micro_batch * compute.world.size, plan.batch_size))
    taken = []
    batches = on_device(batches_of(micro.batch_size, _REHEARSAL_STEPS + 1), compute.device)
    task.model.train()
    for step in range(_REHEARSAL_STEPS + 1):
        start = time.perf_counter()
        set_learning_rate(task.optimizer, task.learning_rate(step))
        tensors = task.before_step(step, next(batches)[1])
        try:
            if step == 0:
                compile_ahead(task, micro, tensors, compute, on_event)
            optimizer_step(task, micro, tensors, compute, compute.scaler(), {})
        except torch.OutOfMemoryError:
            raise UsageError(
                f"The device has not enough memory for {micro.batch_size} images at once.",
                f"Give --micro-batch {max(1, micro.batch_size // 2)}; a run finds one that fits by itself.",
            ) from None
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * plan.batch_size / micro.batch_size)
        on_event(Progress("rehearsal", step + 1, _REHEARSAL_STEPS + 1))
    batches.close()
    seconds = statistics.median(taken[1:])  # the first one warms up
    training = seconds * plan.steps
    times = found | {
        "step time": f"{seconds:.3f} s ({min(taken[1:]):.3f} to {max(taken[1:]):.3f} in {_REHEARSAL_STEPS})",
        "images per second": f"{plan.batch_size / seconds:.0f}",
    }
    if flops:
        rate, reached = matrix_rate(compute) * compute.world.size, flops * plan.batch_size / seconds
        times["utilisation"] = (
            f"{reached / rate:.0%}: {reached / 1e12:.3g} of the {rate / 1e12:.3g} TFLOP/s "
            f"that large {compute.precision} products reach here"
        )
    if before:
        times["tokenizer first"] = f"about {duration(before)}"
    times["training"] = f"about {duration(training)}"
    if before:
        times["whole run"] = f"about {duration(before + training)}"
    on_event(Planned(f"{task.name}: times measured here", times))
    return {
        "dry_run": True,
        "job": config.command,
        "plan": rows | times,
        "steps": plan.steps,
        "step_seconds": seconds,
        "estimated_seconds": before + training,
    }


def tried(task: Task, plan: Plan, batches_of: Callable[[int, int], Iterator[Batch]], compute: Compute) -> Plan:
    """The plan with the micro-batch that a run would find; what a batch is made of is read for it."""
    task.model.train()
    tensors = next(batches_of(plan.batch_size, 1)).to(compute.device)
    return fitting(task, plan, task.before_step(0, tensors), compute)


def duration(seconds: float) -> str:
    """In the unit a person would take."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
