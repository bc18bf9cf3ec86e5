"""The one training loop, shared by train-tokenizer, pretrain and finetune.

A job brings a `Task` (model, loss, schedule, measures); the loop brings order, arithmetic, metrics, checkpoints and
stops. Everything random in a step follows from (seed, step), so a run that goes on from a checkpoint equals one that
was never stopped, bit for bit on a CPU. Between logging steps nothing waits for the device.

Several processes run this loop side by side: each computes its part of every batch, the gradients are averaged, and
before each step they agree on whether to go on (`lockstep.py`). The first one alone writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from beitcli.data.loading.batches import Batch
from beitcli.engine.events import Note, OnEvent, Planned, Progress
from beitcli.engine.trainer.bad_images import Bad, BadImageLedger
from beitcli.engine.trainer.checkpointing import Saver, TrainState, load_newest
from beitcli.engine.trainer.compile_ahead import compile_ahead
from beitcli.engine.trainer.lockstep import Lockstep
from beitcli.engine.trainer.micro_batch import find_micro_batch_size
from beitcli.engine.trainer.optimizer_step import optimizer_step, sample_step_uniforms
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.prefetch import Moved, moving, to_device
from beitcli.engine.trainer.task import RunSession, Task, Tensors, TrainingBatches
from beitcli.errors import BeitError, DivergedError, StorageError, UsageError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.compute.optimizer import set_learning_rate
from beitcli.runtime.distributed.fsdp import gathered

__all__ = ["Plan", "RunSession", "Task", "Tensors", "TrainState", "TrainingBatches", "optimizer_step", "train"]

_SKIPPED_IN_A_ROW = 5  # steps whose gradient is not finite, after which a run has diverged
_SKIPPED_FINDING_SCALE = 20  # more of them with fp16, whose scale starts too large by design


class _StopRequested(Exception):
    """A measurement was left unfinished."""


@dataclass
class _Interval:
    """Between two lines of the log.

    Attributes:
        sums: Of the metrics of its steps, this process's share.
        bad: Images that this process could not read.
    """

    step: int
    since: float = field(default_factory=time.perf_counter)
    sums: Tensors = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


def train(
    task: Task,
    plan: Plan,
    data: TrainingBatches,
    session: RunSession,
    compute: Compute,
    on_event: OnEvent,
    planned: Planned,
) -> TrainState:
    """Trains to `plan.steps`, from the newest whole checkpoint where there is one.

    Args:
        planned: Told unless the run is finished already.

    Raises:
        DivergedError: Loss or gradient stay non-finite; the last checkpoint is from before.
        DataError: More bad images than allowed.
        StorageError: A checkpoint cannot be written.
        DistributedError: A process has other weights than the others.
        Stopped: A signal asked for it; progress is saved.
    """
    loop = _resumed(task, plan, data, session, compute, on_event, planned)
    state, saver = loop.state, loop.saver
    task.model.train()
    batches = moving(data.start(state.step * plan.batch_size, plan.steps - state.step), compute.device)
    lockstep = Lockstep(lambda: loop.fetch(batches), session.stop, compute.world)
    try:
        while state.step < plan.steps:
            # batch: every process has its part, or all of them stop
            stopping, moved = lockstep.enter(is_last=state.step + 1 == plan.steps)
            batch, tensors = moved.batch, moved.take()
            loop.interval.bad += batch.bad
            if stopping:
                loop.gather_bad()
                loop.stop_here()

            # targets, and what else follows from the step
            loop.seed_step()
            tensors = loop.with_draws(tensors)
            set_learning_rate(task.optimizer, task.learning_rate(state.step))
            tensors = task.before_step(state.step, tensors)

            # forward, loss, backward and optimizer step, by micro-batches
            loop.step(tensors)
            task.after_step(state.step)
            state.step += 1

            # log
            saving = state.step == plan.steps or state.step % plan.save_every == 0
            logging = saving or state.step % plan.log_every == 0
            if logging or compute.device.type != "cuda":
                loop.require_progress(batch, data.path_of)
            if not logging:
                on_event(Progress(task.name, state.step, plan.steps))
                continue
            loop.gather_bad()
            metrics = loop.training_metrics()

            # evaluate
            stopping = saving and loop.evaluate(metrics)
            loop.log(metrics)
            if stopping:
                state.figures = None
                lockstep.leave()
                loop.stop_here()

            # save
            if saving:
                lockstep.pending_error = loop.save() or lockstep.pending_error
            loop.interval = _Interval(state.step)
        saver.wait_on_all_ranks(lockstep.pending_error)
        loop.evaluate_if_missing()
    except BeitError:
        with suppress(BeitError):
            saver.finish()
        raise
    finally:
        batches.close()
    return state


def _resumed(
    task: Task,
    plan: Plan,
    data: TrainingBatches,
    session: RunSession,
    compute: Compute,
    on_event: OnEvent,
    planned: Planned,
) -> _Loop:
    """The loop where the run folder stands; everything that is written to it begins here."""
    run, scaler = session.run, compute.scaler()
    stored = load_newest(task, plan, run, compute, scaler, on_event)
    state = stored.state
    if plan.finds_micro_batch and stored.micro_batch:  # nothing else is asked for: as before, to the last bit
        plan = replace(plan, micro_batch=stored.micro_batch)
    if state.step < plan.steps:
        on_event(planned)
        if task.attention is not None:
            on_event(Note(f"{task.name}: {task.attention.describe()}"))
    run.rewind_metrics(state.step)
    run.write_text("bad-images.jsonl", "")
    ledger = BadImageLedger(run, plan.images + len(data.bad), plan.max_bad, session.resume_command)
    ledger.note([*data.bad, *stored.bad])
    saver = Saver(task, run, compute, scaler, ledger, on_event)
    saver.last_saved = state.step
    return _Loop(task, plan, session, compute, on_event, saver, state)


class _Loop:
    """What the steps of one `train` share.

    Attributes:
        plan: With the micro-batch that was found, from the first step on.
        interval: Since the last line of the log.
        streak: Steps in a row that were skipped; a scalar on the device.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        session: RunSession,
        compute: Compute,
        on_event: OnEvent,
        saver: Saver,
        state: TrainState,
    ) -> None:
        self.task, self.plan, self.session, self.compute, self.on_event = task, plan, session, compute, on_event
        self.saver, self.ledger, self.scaler, self.state = saver, saver.ledger, saver.scaler, state
        self.interval = _Interval(state.step)
        self.streak = torch.zeros((), device=compute.device)
        self.is_prepared = False

    def fetch(self, batches: Iterator[Moved]) -> Moved:
        """This process's part of the next batch."""
        self.saver.poll_writer()
        moved = next(batches)
        if self.compute.world.size == 1:
            self.ledger.note(moved.batch.bad)
        return moved

    def gather_bad(self) -> None:
        """Every process's unreadable images, in the order of ranks, into everyone's ledger."""
        world = self.compute.world
        if world.size > 1:
            self.ledger.note([record for records in world.gather(self.interval.bad) for record in records])

    def seed_step(self) -> None:
        torch.manual_seed(keyed_integer(self.plan.seed, "step", 0, self.state.step))

    def with_draws(self, tensors: Tensors) -> Tensors:
        """The batch with the uniform numbers of the step's drop paths, where the task has any."""
        if not self.task.num_uniforms:
            return tensors
        draws = sample_step_uniforms(self.plan, self.task.num_uniforms, self.state.step, self.compute.world)
        return tensors | {"uniforms": to_device(draws, self.compute.device)}

    def step(self, tensors: Tensors) -> None:
        """One optimizer step, compiled before the first one; its metrics go into the interval."""
        try:
            if not self.is_prepared:
                self._prepare(tensors)
            skipped = optimizer_step(self.task, self.plan, tensors, self.compute, self.scaler, self.interval.sums)
        except torch.OutOfMemoryError:
            raise UsageError(
                f"The device has not enough memory for {self.plan.micro_batch} images at once.",
                f"Give --micro-batch {max(1, self.plan.micro_batch // 2)}; --batch-size stays as it is.",
            ) from None
        self.streak = torch.where(skipped, self.streak + 1, torch.zeros_like(self.streak))

    def _prepare(self, tensors: Tensors) -> None:
        """Finds the micro-batch and compiles, with the first batch; both move the generators of the step."""
        task, compute = self.task, self.compute
        is_fresh = self.state.step == 0 and compute.device.type == "cuda" and compute.world.size == 1
        if self.plan.finds_micro_batch and is_fresh:
            self.plan = find_micro_batch_size(task, self.plan, tensors, compute)
            self.on_event(Note(f"{task.name}: {self.plan.micro_batch} images fit on the device at once."))
        compile_ahead(task, self.plan, tensors, compute, self.on_event)
        self.is_prepared, self.interval.since = True, time.perf_counter()
        self.seed_step()

    def require_progress(self, batch: Batch, path_of: Callable[[int], str]) -> None:
        """Raises DivergedError where too many steps in a row were skipped."""
        most = _SKIPPED_IN_A_ROW + (_SKIPPED_FINDING_SCALE if self.scaler.is_enabled() else 0)
        streak = int(self.streak)
        if streak >= most:
            names = [path_of(index) for index in batch.indices]
            self.saver.wait_on_all_ranks()
            raise _diverged(self.compute, streak, self.state.step, names, self.saver.last_saved)

    def training_metrics(self) -> dict[str, float]:
        """Those of the interval, of the task, and of the save before."""
        task, saver = self.task, self.saver
        metrics = _interval_means(task, self.plan, self.state, self.interval, self.compute)
        _require_finite(metrics, self.state.step, saver)
        metrics |= task.log_metrics()
        if task.compiled is not None and (task.compiled.is_compiled or task.compiled.failure):
            metrics["compiled"] = float(task.compiled.is_compiled)
        if saver.stall:
            metrics["save_stall_seconds"], saver.stall = saver.stall, 0.0
        return metrics

    def evaluate(self, metrics: dict[str, float]) -> bool:
        """Adds those of held-out images, which the state keeps; whether a signal came meanwhile, so that none did."""
        measured, watched, stopping = self._measured()
        if measured is not None:
            held_out = {f"held_out_{name}": value for name, value in measured.items()}
            _require_finite(held_out, self.state.step, self.saver)  # no checkpoint of spoilt weights
            self.state.figures = measured
            metrics |= held_out | watched
        return stopping

    def evaluate_if_missing(self) -> None:
        """Measures where a stop came while the last step was being measured."""
        if self.state.figures is None:
            self.state.figures, _, stopping = self._measured()
            if stopping:
                self.stop_here()

    def _measured(self) -> tuple[dict[str, float] | None, dict[str, float], bool]:
        """Metrics of held-out images, None where a signal came meanwhile; those to watch; and whether one came."""
        model = self.task.model
        model.eval()
        try:
            with gathered(model):
                return self.task.evaluate(self._check_stop), self.task.probe_metrics(), False
        except _StopRequested:
            return None, {}, True
        finally:
            model.train()

    def _check_stop(self) -> None:
        if self.compute.world.all_reduce_max(self.session.stop.received or 0):
            raise _StopRequested

    def log(self, metrics: dict[str, float]) -> None:
        """A line of metrics.jsonl, in which every number is finite, and an event."""
        step, plan = self.state.step, self.plan
        line = {"step": step, "epoch": round(plan.epoch(step), 4)}
        self.session.run.append_json("metrics.jsonl", line | {k: v for k, v in metrics.items() if math.isfinite(v)})
        self.on_event(Progress(self.task.name, step, plan.steps, "step", metrics))

    def save(self) -> StorageError | None:
        """Begins to save; what went wrong with the checkpoint before, for all processes to hear at the next step."""
        try:
            self.saver.save(self.plan, self.state)
        except StorageError as error:
            return error
        return None

    def stop_here(self) -> NoReturn:
        """Saves and raises, in all processes alike."""
        saver, state, stop = self.saver, self.state, self.session.stop
        stop.received = self.compute.world.all_reduce_max(stop.received or 0)
        saver.wait_on_all_ranks()
        if saver.last_saved != state.step or not state.step:
            self.task.log_metrics()  # unites what each process has counted
            saver.save(self.plan, state)
            saver.wait_on_all_ranks()
        message = f"by a signal at step {state.step}; progress is saved."
        raise stop.stopped(message, self.session.resume_command)


def _interval_means(
    task: Task, plan: Plan, state: TrainState, interval: _Interval, compute: Compute
) -> dict[str, float]:
    """Means over the interval's steps that were not skipped, none where all were, and its speed; one transfer from the
    device for all."""
    steps = state.step - interval.step
    names = list(interval.sums)
    values = torch.stack([interval.sums[name].reshape(()).float() for name in names])
    totals = dict(zip(names, compute.world.all_reduce_sum(values).tolist(), strict=True))
    skipped = round(totals.pop("skipped_steps"))
    counted = steps - skipped
    metrics = {name: total / counted for name, total in totals.items()} if counted else {}
    taken = time.perf_counter() - interval.since
    state.seconds += taken
    state.images_per_second = steps * plan.batch_size / max(taken, 1e-9)
    metrics |= {"lr": task.learning_rate(state.step - 1), "images_per_second": state.images_per_second}
    return metrics | ({"skipped_steps": skipped} if skipped else {})


def _diverged(compute: Compute, streak: int, step: int, names: list[str], last_saved: int) -> DivergedError:
    everyone = compute.world.gather(names)
    some = "; ".join(
        (f"rank {rank}: " if len(everyone) > 1 else "") + ", ".join(mine[:3]) for rank, mine in enumerate(everyone)
    )
    return DivergedError(
        f"Training diverged: loss or gradient were not finite in {streak} steps in a row, the last of them step {step} "
        f"({some}, ...). {_kept(last_saved)}",
        "Start a new run with a lower --lr, more --warmup-steps, or --precision fp32.",
    )


def _require_finite(metrics: dict[str, float], step: int, saver: Saver) -> None:
    must = ("loss", "gradient_norm")
    wrong = [name for name, value in metrics.items() if not math.isfinite(value) and name.endswith(must)]
    wrong = wrong or [name for name, value in metrics.items() if math.isnan(value)]
    if wrong:
        saver.wait_on_all_ranks()
        raise DivergedError(
            f"Training diverged: {' and '.join(wrong)} not finite by step {step}. {_kept(saver.last_saved)}",
            "Start a new run with a lower --lr, more --warmup-steps, or --precision fp32.",
        )


def _kept(last_saved: int) -> str:
    return f"The checkpoint of step {last_saved} is from before." if last_saved else "No checkpoint was saved yet."
