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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from beitcli.data.loader import Batch
from beitcli.engine.bad_images import Bad, BadImageLedger
from beitcli.engine.compile_ahead import compile_ahead
from beitcli.engine.events import Note, OnEvent, Planned, Progress
from beitcli.engine.lockstep import Lockstep
from beitcli.engine.micro_batch import fitting
from beitcli.engine.saving import Progressed, Saver, load_newest
from beitcli.engine.step import optimizer_step, step_draws
from beitcli.engine.task import Plan, Task, Tensors
from beitcli.engine.transfer import Moved, moving, to_device
from beitcli.errors import BeitError, DivergedError, StorageError, UsageError
from beitcli.runtime.device import Compute
from beitcli.runtime.keyed import keyed_integer
from beitcli.runtime.optim import set_learning_rate
from beitcli.runtime.run_folder import RunFolder
from beitcli.runtime.sharding import gathered
from beitcli.runtime.signals import StopRequest

__all__ = ["Plan", "Progressed", "Task", "Tensors", "optimizer_step", "train"]

_SKIPPED_IN_A_ROW = 5  # steps whose gradient is not finite, after which a run has diverged
_SKIPPED_FINDING_SCALE = 20  # more of them with fp16, whose scale starts too large by design


class _StopAsked(Exception):
    """A measurement was left unfinished."""


@dataclass
class _Interval:
    """Between two lines of the log.

    Attributes:
        sums: Of the figures of its steps, this process's share.
        bad: Images that this process could not read.
    """

    step: int
    since: float = field(default_factory=time.perf_counter)
    sums: Tensors = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


def train(
    task: Task,
    plan: Plan,
    batches_from: Callable[[int, int], Iterator[Batch]],
    run: RunFolder,
    compute: Compute,
    on_event: OnEvent,
    stop: StopRequest,
    resume_command: str,
    planned: Planned,
    bad_before: Sequence[Bad] = (),
    path_of: Callable[[int], str] = "image {}".format,
) -> Progressed:
    """Trains to `plan.steps`, from the newest whole checkpoint where there is one.

    Args:
        batches_from: (images_seen, steps) to this process's part of the batches from there on.
        resume_command: What a person runs to go on after a stop.
        planned: Told unless the run is finished already.
        bad_before: Images found unreadable before the first step, beside the plan's.
        path_of: Index of a training image to what names it.

    Raises:
        DivergedError: Loss or gradient stay non-finite; the last checkpoint is from before.
        DataError: More bad images than allowed.
        StorageError: A checkpoint cannot be written.
        DistributedError: A process has other weights than the others.
        Stopped: A signal asked for it; progress is saved.
    """
    world, scaler = compute.world, compute.scaler()
    stored = load_newest(task, plan, run, compute, scaler, on_event)
    state = stored.state
    if plan.finds_micro_batch and stored.micro_batch:  # nothing else is asked for: as before, to the last bit
        plan = replace(plan, micro_batch=stored.micro_batch)
    finds = plan.finds_micro_batch and state.step == 0 and compute.device.type == "cuda" and world.size == 1
    if state.step < plan.steps:
        on_event(planned)
        if task.attention is not None:
            on_event(Note(f"{task.name}: {task.attention.describe()}"))
    run.rewind_metrics(state.step)
    run.write_text("bad-images.jsonl", "")
    ledger = BadImageLedger(run, plan.images + len(bad_before), plan.max_bad, resume_command)
    ledger.note([*bad_before, *stored.bad])
    saver = Saver(task, run, compute, scaler, ledger, on_event)
    saver.last_saved = state.step
    streak = torch.zeros((), device=compute.device)
    most = _SKIPPED_IN_A_ROW + (_SKIPPED_FINDING_SCALE if scaler.is_enabled() else 0)

    def asked() -> None:
        if world.largest(stop.received or 0):
            raise _StopAsked

    task.poll = asked  # type: ignore[method-assign]
    task.model.train()
    interval, is_prepared = _Interval(state.step), False
    batches = moving(batches_from(state.step * plan.batch_size, plan.steps - state.step), compute.device)

    def fetch() -> Moved:
        saver.look()
        moved = next(batches)
        if world.size == 1:
            ledger.note(moved.batch.bad)
        return moved

    lockstep = Lockstep(fetch, stop, world)
    try:
        while state.step < plan.steps:
            stopping, moved = lockstep.enter(is_last=state.step + 1 == plan.steps)
            batch, tensors = moved.batch, moved.take()
            interval.bad += batch.bad
            if stopping:
                _gather_bad(interval, ledger, compute)
                _stop_here(saver, plan, state, stop, resume_command)

            torch.manual_seed(keyed_integer(plan.seed, "step", 0, state.step))
            if task.draws:
                tensors["draws"] = to_device(step_draws(plan, task.draws, state.step, world), compute.device)
            set_learning_rate(task.optimizer, task.learning_rate(state.step))
            tensors = task.before_step(state.step, tensors)
            if finds and not is_prepared:
                plan = fitting(task, plan, tensors, compute)
                on_event(Note(f"{task.name}: {plan.micro_batch} images fit on the device at once."))
            try:
                if not is_prepared:
                    compile_ahead(task, plan, tensors, compute, on_event)
                    is_prepared, interval.since = True, time.perf_counter()
                    torch.manual_seed(keyed_integer(plan.seed, "step", 0, state.step))
                skipped = optimizer_step(task, plan, tensors, compute, scaler, interval.sums)
            except torch.OutOfMemoryError:
                raise UsageError(
                    f"The device has not enough memory for {plan.micro_batch} images at once.",
                    f"Give --micro-batch {max(1, plan.micro_batch // 2)}; --batch-size stays as it is.",
                ) from None
            streak = torch.where(skipped, streak + 1, torch.zeros_like(streak))
            task.after_step(state.step)
            state.step += 1

            last = state.step == plan.steps
            saving = last or state.step % plan.save_every == 0
            logging = saving or state.step % plan.log_every == 0
            if (logging or compute.device.type != "cuda") and int(streak) >= most:
                names = [path_of(index) for index in batch.indices]
                saver.settle()
                raise _diverged(compute, int(streak), state.step, names, saver.last_saved)
            if not logging:
                on_event(Progress(task.name, state.step, plan.steps))
                continue
            _gather_bad(interval, ledger, compute)
            figures = _figures(task, plan, state, interval, compute)
            _require_finite(figures, state.step, saver)
            figures |= task.figures()
            if task.compiled is not None and (task.compiled.is_compiled or task.compiled.failure):
                figures["compiled"] = float(task.compiled.is_compiled)
            if saver.stall:
                figures["save_stall_seconds"], saver.stall = saver.stall, 0.0
            measured, watched, stopping = _measured(task) if saving else (None, {}, False)
            if measured is not None:
                held_out = {f"held_out_{name}": value for name, value in measured.items()}
                _require_finite(held_out, state.step, saver)  # no checkpoint of spoilt weights
                state.figures = measured
                figures |= held_out | watched
            line = {"step": state.step, "epoch": round(plan.epoch(state.step), 4)}
            run.append_json("metrics.jsonl", line | {k: v for k, v in figures.items() if math.isfinite(v)})
            on_event(Progress(task.name, state.step, plan.steps, "step", figures))
            if stopping:
                state.figures = None
                lockstep.leave()
                _stop_here(saver, plan, state, stop, resume_command)
            if saving:
                try:
                    saver.save(plan, state)
                except StorageError as error:
                    lockstep.trouble = error
            interval = _Interval(state.step)
        saver.settle(lockstep.trouble)
        if state.figures is None:  # a stop came while the last step was being measured
            state.figures, _, stopping = _measured(task)
            if stopping:
                _stop_here(saver, plan, state, stop, resume_command)
    except BeitError:
        with suppress(BeitError):
            saver.finish()
        raise
    finally:
        batches.close()
    return state


def _stop_here(saver: Saver, plan: Plan, state: Progressed, stop: StopRequest, resume_command: str) -> NoReturn:
    """Saves and raises, in all processes alike."""
    stop.received = saver.compute.world.largest(stop.received or 0)
    saver.settle()
    if saver.last_saved != state.step or not state.step:
        saver.task.figures()  # unites what each process has counted
        saver.save(plan, state)
        saver.settle()
    raise stop.stopped(f"By a signal at step {state.step}; progress is saved.", resume_command)


def _measured(task: Task) -> tuple[dict[str, float] | None, dict[str, float], bool]:
    """Figures on held-out images, None where a signal came meanwhile; those to watch; and whether one came."""
    task.model.eval()
    try:
        with gathered(task.model):
            return task.measure(), task.monitor(), False
    except _StopAsked:
        return None, {}, True
    finally:
        task.model.train()


def _gather_bad(interval: _Interval, ledger: BadImageLedger, compute: Compute) -> None:
    """Every process's unreadable images, in the order of ranks, into everyone's ledger."""
    if compute.world.size > 1:
        ledger.note([record for records in compute.world.gather(interval.bad) for record in records])


def _figures(task: Task, plan: Plan, state: Progressed, interval: _Interval, compute: Compute) -> dict[str, float]:
    """Means over the interval's steps that were not skipped, none where all were, and its speed; one transfer from the
    device for all."""
    steps = state.step - interval.step
    names = list(interval.sums)
    values = torch.stack([interval.sums[name].reshape(()).float() for name in names])
    totals = dict(zip(names, compute.world.sum(values).tolist(), strict=True))
    skipped = round(totals.pop("skipped_steps"))
    counted = steps - skipped
    figures = {name: total / counted for name, total in totals.items()} if counted else {}
    taken = time.perf_counter() - interval.since
    state.seconds += taken
    state.images_per_second = steps * plan.batch_size / max(taken, 1e-9)
    figures |= {"lr": task.learning_rate(state.step - 1), "images_per_second": state.images_per_second}
    return figures | ({"skipped_steps": skipped} if skipped else {})


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


def _require_finite(figures: dict[str, float], step: int, saver: Saver) -> None:
    must = ("loss", "gradient_norm")
    wrong = [name for name, value in figures.items() if not math.isfinite(value) and name.endswith(must)]
    wrong = wrong or [name for name, value in figures.items() if math.isnan(value)]
    if wrong:
        saver.settle()
        raise DivergedError(
            f"Training diverged: {' and '.join(wrong)} not finite by step {step}. {_kept(saver.last_saved)}",
            "Start a new run with a lower --lr, more --warmup-steps, or --precision fp32.",
        )


def _kept(last_saved: int) -> str:
    return f"The checkpoint of step {last_saved} is from before." if last_saved else "No checkpoint was saved yet."
