"""Set-up of a training job: run folder, plan, and the rows that display the plan."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from beitcli import __version__
from beitcli.config.common import Training
from beitcli.config.resuming import resuming_words
from beitcli.config.toml_text import dump_toml
from beitcli.data.sources.base import Source
from beitcli.engine.trainer.measuring import describe_measuring
from beitcli.engine.trainer.plan import MOST_MICRO_BATCH, Plan
from beitcli.engine.trainer.task import Task
from beitcli.errors import DataError, StorageError
from beitcli.escaping import shell_line
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.metric_text import counted, epochs_text
from beitcli.runtime.storage.run_dir import ReadOnlyRunFolder, RunFolder


def run_path(config: Training) -> Path:
    """Returns `--out`, or a new folder runs/COMMAND-DATE-TIME, which is made here: no other run gets the same name.

    Raises:
        StorageError: It cannot be made.
    """
    if config.out:
        return Path(config.out)
    base = Path("runs") / f"{config.command}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = base, 2
    while True:
        try:
            base.parent.mkdir(exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            if not base.parent.is_dir():
                raise StorageError(f"'{base.parent}' is a file, and runs go there.", "Give --out RUN.") from None
            path, number = base.with_name(f"{base.name}-{number}"), number + 1
        except OSError as error:
            raise StorageError(
                f"Run folder '{path}' cannot be made: {error.strerror or error}.", "Give a writable folder to --out."
            ) from None


def resume_command(config: Training, run: Path) -> str:
    """Returns a sentence with the command that resumes a run as it was."""
    return f"Go on with: {shell_line(resuming_words(type(config), str(run), vars(config)))}"


def open_run(config: Training, world: DistributedContext = SINGLE_PROCESS) -> RunFolder:
    """Opens the run folder and writes config.toml. Rank 0 creates it; the other ranks can only read it."""
    made: list[RunFolder] = []

    def make() -> Path:
        run = RunFolder.create(run_path(config), resume=config.resume)
        repeat = shell_line(["beit", config.command, "--config", run.path / "config.toml", "--out", "NEW"])
        header = f"beit {__version__}. Repeat: {repeat}"
        run.write_text("config.toml", dump_toml(config, header))
        made.append(run)
        return run.path

    path = world.run_on_rank_zero(make)
    return made[0] if world.is_rank_zero else ReadOnlyRunFolder(path)


def make_plan(config: Training, source: Source) -> Plan:
    """Computes steps, warm-up and intervals in optimizer steps; a warm-up as long as the run becomes a fifth of it."""
    images = len(source)
    if images < 1:
        raise DataError("No images are left to train on.", "Give more data or a larger --limit.")
    per_epoch = images / config.batch_size
    steps = planned_steps(config, images)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round((config.warmup_epochs or 0) * per_epoch)
    return Plan(
        seed=config.seed,
        images=images,
        steps=steps,
        batch_size=config.batch_size,
        micro_batch=min(config.micro_batch or MOST_MICRO_BATCH, config.batch_size),
        warmup_steps=warmup if warmup < steps else steps // 5,
        clip=config.clip,
        save_every=config.save_every or max(1, min(2000, -(-steps // 10))),
        log_every=config.log_every or max(1, min(50, steps // 100)),
        keep=config.keep,
        measure_share=config.measure_share,
        max_bad=config.max_bad,
        data_fingerprint=source.fingerprint(),
        finds_micro_batch=config.micro_batch is None,
        has_splits=bool(source.splits),
    )


def planned_steps(config: Training, images: int) -> int:
    """Returns the number of optimizer steps of a training on so many images."""
    if config.steps is not None:
        return config.steps
    return max(1, round((config.epochs or 0) * images / config.batch_size))


def describe_plan(task: Task, plan: Plan, curve: str = "cosine") -> dict[str, str]:
    """Returns the rows that display the plan of a task.

    Args:
        curve: Shape of the learning rate schedule after the warm-up.
    """
    config = task.config
    warm_up = f"{counted(plan.warmup_steps, 'step')} of warm-up"
    epochs = epochs_text(plan.epoch(plan.steps), config.whole_epochs)
    return {
        "images": f"{plan.images:,}",
        "steps": f"{plan.steps:,} of {plan.batch_size:,} images ({epochs})",
        "micro-batch": micro_batch_row(plan),
        "learning rate": f"{config.lr:g}, {warm_up}, {curve} to {config.min_lr:g}",
        "weight decay": f"{config.weight_decay:g}",
        "clip": f"{plan.clip:g}" if plan.clip is not None else "none",
        "checkpoint": f"every {counted(plan.save_every, 'step')}, {plan.keep} kept",
        "measured": describe_measuring(plan, task.measuring_cost()),
    }


def micro_batch_row(plan: Plan) -> str:
    return f"{plan.micro_batch} ({-(-plan.batch_size // plan.micro_batch)} a step)"


def checkpoint_bytes(task: Task) -> int:
    """Returns the size of one checkpoint: weights and AdamW's two moments, in fp32."""
    return sum(parameter.numel() for parameter in task.model.parameters()) * 4 * 3
