"""Saving and loading the state of a run: the contents of a checkpoint, and when rank 0 writes it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beitcli.engine.events import Note, OnEvent, Saved, warn
from beitcli.engine.trainer.arithmetic import arithmetic_record
from beitcli.engine.trainer.bad_images import Bad, BadImageLedger
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.engine.trainer.trainer_state import stored_progress
from beitcli.errors import BeitError, DistributedError, StorageError, UsageError
from beitcli.escaping import shell_line
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.optimizer import load_optimizer_tensors, optimizer_tensors
from beitcli.runtime.distributed.equal_weights import differing_ranks
from beitcli.runtime.distributed.fsdp import distribute_like, full_tensor, is_sharded
from beitcli.runtime.shortages import shortage
from beitcli.runtime.storage.async_writer import CheckpointWriter, Snapshot, SnapshotTaker, Written
from beitcli.runtime.storage.checkpoint import CheckpointFolder, newest_checkpoint, repair_latest, save_checkpoint
from beitcli.runtime.storage.run_dir import RunFolder


@dataclass
class TrainState:
    """Progress of a run; saved with each checkpoint.

    Attributes:
        seconds: Spent on training.
        measuring_seconds: Spent on held-out images, beside `seconds`.
        metrics: Of the held-out images at this step; None if they were not measured.
    """

    step: int = 0
    seconds: float = 0.0
    measuring_seconds: float = 0.0
    images_per_second: float = 0.0
    metrics: dict[str, float] | None = None


@dataclass(frozen=True)
class ResumeState:
    """State that a resumed run starts from.

    Attributes:
        micro_batch: Stored micro-batch size; 0 if none is stored.
        left_out: Unreadable images of the last evaluation.
    """

    state: TrainState
    bad: list[Bad]
    micro_batch: int
    left_out: list[Bad] = field(default_factory=list)


class Saver:
    """Saves the state of a run. All ranks call it alike; rank 0 writes.

    Attributes:
        stall: Seconds that training waited for the latest save. On CUDA these are seconds of the host, which only
            enqueues the copies; the time that the device takes for them shows in the step time.
        last_saved: Step of the newest checkpoint that is known to be on disk; 0 for none.
    """

    def __init__(
        self,
        task: Task,
        run: RunFolder,
        compute: Compute,
        scaler: Any,
        ledger: BadImageLedger,
        on_event: OnEvent,
        last_saved: int = 0,
    ) -> None:
        self.task, self.run, self.compute, self.scaler = task, run, compute, scaler
        self.ledger, self.on_event = ledger, on_event
        self.writer, self.snapshots = CheckpointWriter(), SnapshotTaker()
        self.stall, self.last_saved = 0.0, last_saved
        self._told_stall = 0.0

    def save(self, plan: Plan, state: TrainState) -> None:
        """Copies the state, and writes it while training continues.

        Raises:
            StorageError: The previous checkpoint could not be written.
            DistributedError: The weights differ between ranks.
        """
        begun = time.perf_counter()
        self.wait_on_all_ranks()
        self.require_equal_weights(state.step)
        copies = self._copies()
        if copies is not None:
            groups = copies.groups
            save = partial(
                save_checkpoint,
                self.run.checkpoints,
                state.step,
                model=groups["weights"],
                config={"kind": self.task.kind} | self.task.checkpoint_config(),
                beside=self.task.timm_config(),
                trainer_tensors=groups["moments"] | {f"task/{name}": each for name, each in groups["extra"].items()},
                trainer=self._trainer(plan, state),
                keep=plan.keep,
            )

            def write() -> Path:
                copies.wait()
                return save()

            self.writer.submit(write, state.step)
        self.stall = self._told_stall = time.perf_counter() - begun

    def _copies(self) -> Snapshot | None:
        """Copies the contents of a checkpoint; None on ranks that do not write."""
        weights, first = self.task.weights(), self.compute.world.is_rank_zero
        moments = optimizer_tensors(self.task.model, self.task.optimizer)
        if is_sharded(self.task.model):  # all ranks gather one tensor after the other
            extra = self.task.extra_tensors()
            return self.snapshots.take_in_turn(full_tensor, keep=first, weights=weights, moments=moments, extra=extra)
        if not first:
            return None
        return self.snapshots.take(weights=weights, moments=moments, extra=self.task.extra_tensors())

    def _trainer(self, plan: Plan, state: TrainState) -> dict[str, Any]:
        return {
            "step": state.step,
            "planned_steps": plan.steps,
            "seconds": state.seconds,
            "measuring_seconds": state.measuring_seconds,
            "images_per_second": state.images_per_second,
            "figures": state.metrics,
            "images_seen": state.step * plan.batch_size,
            "data": plan.data_fingerprint,
            "bad": list(self.ledger.records),
            "left_out": list(self.task.left_out),
            "on_training": self.task.on_training,
            "scaler": self.scaler.state_dict(),
            "micro_batch": plan.micro_batch,
            "threads": torch.get_num_threads(),
            "arithmetic": arithmetic_record(self.compute),
        }

    def require_equal_weights(self, step: int) -> None:
        """Raises DistributedError if a rank's weights differ bitwise from the others', a sign of faulty hardware."""
        if is_sharded(self.task.model):  # no weight is on two ranks
            return
        ranks = differing_ranks(self.compute.world, self.task.model.parameters())
        if ranks:
            names = ", ".join(map(str, ranks))
            raise DistributedError(
                f"Rank {names} of {self.compute.world.size} has other weights than the rest at step {step}: its memory "
                f"or GPU is at fault. It was not saved; the checkpoint of step {self.last_saved} is from before.",
                "Leave that machine out, and go on with --resume.",
            )

    def poll_writer(self) -> None:
        """Emits an event if a checkpoint has been written meanwhile. Raises StorageError if that failed."""
        self._tell(self.writer.finished())

    def finish(self) -> None:
        """Waits until no checkpoint is being written."""
        self._tell(self.writer.wait())

    def wait_on_all_ranks(self, pending_error: BeitError | None = None) -> None:
        """Like `finish`, on all ranks together: all raise the error of any rank, and get the same `last_saved`."""
        try:
            self.finish()
        except StorageError as error:
            pending_error = pending_error or error
        self.compute.world.raise_if_any_failed(pending_error)
        self.last_saved = self.compute.world.all_reduce_max(self.last_saved)

    def _tell(self, written: Written | None) -> None:
        if written is not None:
            self.last_saved = written.step
            self.on_event(Saved(str(written.path), written.step, self._told_stall, written.seconds))


def _newest(run: RunFolder) -> CheckpointFolder | None:
    checkpoint = newest_checkpoint(run.path)
    if checkpoint is not None:
        repair_latest(checkpoint)
    return checkpoint


def load_newest(
    task: Task, plan: Plan, run: RunFolder, compute: Compute, scaler: Any, on_event: OnEvent
) -> ResumeState:
    """Loads the newest intact checkpoint into the task; returns a fresh state if there is none.

    Rank 0 finds it and verifies its hashes; the other ranks read the one it found.

    Raises:
        UsageError: The data has changed, or the device has not enough memory.
        StorageError: All checkpoints are damaged, or the newest is of another architecture.
    """
    if run.leftovers:
        on_event(Note(f"{task.name}: removed what a killed process left unfinished: {', '.join(run.leftovers)}"))
    checkpoint: CheckpointFolder | None = compute.world.run_on_rank_zero(lambda: _newest(run))
    if checkpoint is None:
        return ResumeState(TrainState(), [], 0)
    warn(checkpoint.damaged, on_event)
    trainer = stored_progress(checkpoint)
    if trainer["data"] != plan.data_fingerprint:
        versions = " Earlier versions knew fewer names of splits, and may have read others." if plan.has_splits else ""
        raise UsageError(
            f"The data is not what run '{run.path}' was trained on: images were added, removed or renamed.{versions}",
            "Restore the data, or start a new run with another --out.",
        )
    try:
        kept = task.model.state_dict()
        found = checkpoint.model_tensors()
        task.model.load_state_dict(
            {name: distribute_like(t, kept[name]) if name in kept else t for name, t in found.items()}
        )
        tensors = checkpoint.trainer_tensors()
        extra = {name.removeprefix("task/"): t for name, t in tensors.items() if name.startswith("task/")}
        rest = {name: t for name, t in tensors.items() if not name.startswith("task/")}
        load_optimizer_tensors(task.model, task.optimizer, rest)
        if scaler.is_enabled():
            scaler.load_state_dict(trainer["scaler"])
        task.load_extra_tensors({name: tensor.to(compute.device) for name, tensor in extra.items()})
    except (RuntimeError, KeyError) as error:
        lacking = shortage(error)
        if lacking is not None:
            raise lacking from None
        raise StorageError(
            f"Checkpoint '{checkpoint.path}' is of another architecture: {str(error).splitlines()[0]}",
            "Start a new run with another --out.",
        ) from None
    threads, before = torch.get_num_threads(), trainer.get("threads")
    if trainer["step"] < plan.steps and compute.device.type == "cpu" and before not in (None, threads):
        told = f"{task.name}: the run was on {before} threads, this is on {threads}: its weights differ by rounding"
        on_event(Note(f"{told}. The same bits: OMP_NUM_THREADS={before}"))
    if trainer["step"] < plan.steps:
        on_event(Note(f"{task.name}: going on from step {trainer['step']} ({checkpoint.path})"))
    else:
        on_event(Note(f"{task.name}: '{run.path}' is finished, all {plan.steps:,} steps; nothing is trained."))
        again = ["beit", task.config.command, "--config", run.path / "config.toml"]
        again += ["--steps", 2 * plan.steps, "--out", "NEW"]
        on_event(Note(f"To train longer, start a new run: {shell_line(again)}"))
    state = TrainState(
        step=trainer["step"],
        seconds=trainer["seconds"],
        measuring_seconds=trainer.get("measuring_seconds", 0.0),
        images_per_second=trainer["images_per_second"],
        metrics=trainer["figures"],
    )
    bad, left_out = ([(n, path, reason) for n, path, reason in trainer.get(name, ())] for name in ("bad", "left_out"))
    return ResumeState(state, bad, trainer.get("micro_batch", 0), left_out)
