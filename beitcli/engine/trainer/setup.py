"""What every training job does before its first step: run folder, data, plan, and its rows for a person."""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from beitcli import __version__
from beitcli.config.common import Training
from beitcli.config.resolve import dump_toml
from beitcli.data.sources.base import Source
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.errors import DataError
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.storage.run_dir import FollowedRun, RunFolder

_MICRO_BATCH = 128


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


def open_run(config: Training, world: DistributedContext = SINGLE_PROCESS) -> RunFolder:
    """The run folder, with config.toml in it; the first process makes it, the others follow what it does."""
    made: list[RunFolder] = []

    def make() -> Path:
        run = RunFolder.create(run_path(config), resume=config.resume)
        header = f"beit {__version__}. Repeat: beit {config.command} --config {run.path}/config.toml --out NEW"
        run.write_text("config.toml", dump_toml(config, header))
        made.append(run)
        return run.path

    path = world.run_on_rank_zero(make)
    return made[0] if world.is_rank_zero else FollowedRun(path)


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


def describe_plan(plan: Plan, config: Training, curve: str = "cosine") -> dict[str, str]:
    """The plan in rows for a person.

    Args:
        curve: Of the learning rate after its warm-up.
    """
    return {
        "images": f"{plan.images:,}",
        "steps": f"{plan.steps:,} of {plan.batch_size} images ({plan.epoch(plan.steps):.4g} epochs)",
        "micro-batch": micro_batch_row(plan),
        "learning rate": f"{config.lr:g}, {plan.warmup_steps:,} steps of warm-up, {curve} to {config.min_lr:g}",
        "weight decay": f"{config.weight_decay:g}",
        "clip": f"{plan.clip:g}" if plan.clip is not None else "none",
        "checkpoint": f"every {plan.save_every:,} steps, {plan.keep} kept",
    }


def micro_batch_row(plan: Plan) -> str:
    return f"{plan.micro_batch} ({-(-plan.batch_size // plan.micro_batch)} a step)"


def checkpoint_bytes(task: Task) -> int:
    """Of one checkpoint: weights, and AdamW's two moments of them."""
    return sum(parameter.numel() for parameter in task.model.parameters()) * 4 * 3
