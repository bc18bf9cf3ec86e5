"""The training loop of train-tokenizer, pretrain and finetune.

A job defines a `Task` (model, loss, schedule, evaluation). The loop adds seeding, gradient accumulation, logging,
checkpoints and stops. All randomness of a step follows from (seed, step), so on a CPU a resumed run equals an
uninterrupted one bit for bit. Between logging steps the host never waits for the device.

In distributed training each rank runs this loop: it computes its part of every batch, the gradients are averaged, and
before each step the ranks agree on whether to continue (`lockstep.py`). Only rank 0 writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from beitcli.engine.events import Note, OnEvent, Planned, Progress, Warned
from beitcli.engine.trainer.bad_images import BAD_IMAGES, Bad, BadImageLedger, left_out_text
from beitcli.engine.trainer.checkpointing import Saver, TrainState, load_newest
from beitcli.engine.trainer.compile_ahead import compile_ahead
from beitcli.engine.trainer.divergence import DivergenceCheck
from beitcli.engine.trainer.interval import Interval
from beitcli.engine.trainer.lockstep import Lockstep
from beitcli.engine.trainer.measuring import Measuring
from beitcli.engine.trainer.metric_log import MetricLog, make_writers
from beitcli.engine.trainer.micro_batch import find_micro_batch_size, no_room
from beitcli.engine.trainer.optimizer_step import max_micro_batch, optimizer_step, sample_step_uniforms
from beitcli.engine.trainer.picture_stamps import changed_pictures
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.prefetch import DeviceBatch, prefetch_to_device, to_device
from beitcli.engine.trainer.previews import PreviewWriter
from beitcli.engine.trainer.task import RunSession, Task, Tensors, TrainingBatches
from beitcli.errors import BeitError, DataError, StorageError
from beitcli.escaping import shell_line
from beitcli.runtime.compute.device import Compute, seed_generators
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.compute.optimizer import set_learning_rate
from beitcli.runtime.signals import signal_words


def train(
    task: Task,
    plan: Plan,
    data: TrainingBatches,
    session: RunSession,
    compute: Compute,
    on_event: OnEvent,
    planned: Planned,
) -> TrainState:
    """Trains up to step `plan.steps`, from the newest intact checkpoint if there is one.

    Args:
        planned: Emitted unless the run is already finished.

    Raises:
        DivergedError: Loss or gradients stay non-finite; the last checkpoint is from before.
        DataError: More bad images than allowed.
        StorageError: A checkpoint cannot be written.
        DistributedError: The weights differ between ranks.
        Stopped: A signal requested it; progress is saved.
    """
    loop = _Loop(task, plan, data, session, compute, on_event)
    state = loop.resume(planned)
    task.model.train()
    batches = prefetch_to_device(data.start(state.step * plan.batch_size, plan.steps - state.step), compute.device)
    lockstep = Lockstep(lambda: loop.fetch(batches), session.stop, compute.world)
    try:
        loop.evaluate_if_missing()
        while state.step < plan.steps:
            # batch: every rank has its part, or all ranks stop
            stopping, moved = lockstep.enter(is_last=state.step + 1 == plan.steps)
            batch, tensors = moved.batch, moved.take()
            loop.interval.bad += batch.bad
            if stopping:
                loop.gather_bad()
                loop.stop_here()

            # targets, and everything that depends on the step
            loop.seed_step()
            tensors = loop.with_uniforms(tensors)
            set_learning_rate(task.optimizer, task.learning_rate(state.step))
            tensors = task.before_step(state.step, tensors)

            # forward, loss, backward and optimizer step, by micro-batches
            loop.step(tensors)
            task.after_step(state.step)
            state.step, state.metrics = state.step + 1, None

            # log
            saving = state.step == plan.steps or state.step % plan.save_every == 0
            logging = saving or state.step % plan.log_every == 0
            if logging or compute.device.type != "cuda":
                loop.divergence.require_progress(state.step, batch, data.path_of)
            if not logging:
                on_event(Progress(task.name, state.step, plan.steps))
                continue
            loop.gather_bad()
            metrics = loop.training_metrics()

            # evaluate
            stopping = saving and loop.evaluate(metrics)
            loop.log(metrics)
            if stopping:
                lockstep.leave()
                loop.stop_here()

            # save
            if saving:
                lockstep.pending_error = loop.save() or lockstep.pending_error
            loop.interval = Interval(state.step)
        loop.saver.wait_on_all_ranks(lockstep.pending_error)
        loop.evaluate_if_missing()
    except BeitError:
        with suppress(BeitError):
            loop.saver.finish()
        raise
    finally:
        batches.close()
        loop.metric_log.close()
    return state


@dataclass
class _Loop:
    """State shared by the steps of one `train`.

    Attributes:
        plan: From the first step on with the micro-batch size that was found.
        interval: Metrics since the last logged step.
    """

    task: Task
    plan: Plan
    data: TrainingBatches
    session: RunSession
    compute: Compute
    on_event: OnEvent
    is_prepared: bool = False
    state: TrainState = field(init=False)
    ledger: BadImageLedger = field(init=False)
    saver: Saver = field(init=False)
    divergence: DivergenceCheck = field(init=False)
    interval: Interval = field(init=False)
    metric_log: MetricLog = field(init=False)
    measuring: Measuring = field(init=False)

    def resume(self, planned: Planned) -> TrainState:
        """Loads the state of the run folder, and opens everything that is written to it."""
        task, session, compute = self.task, self.session, self.compute
        run, scaler = session.run, compute.scaler()
        stored = load_newest(task, self.plan, run, compute, scaler, self.on_event)
        self.state = stored.state
        if self.plan.finds_micro_batch and stored.micro_batch:  # not given: as before the stop, bit for bit
            self.plan = replace(self.plan, micro_batch=stored.micro_batch)
        if stored.micro_batch:
            self._limit_evaluation()
        if self.state.step < self.plan.steps:
            self.on_event(planned)
            if task.attention is not None:
                self.on_event(Note(f"{task.name}: {task.attention.describe()}"))
        if compute.world.is_rank_zero and (told := changed_pictures(run, self.data.path_of, self.plan.images)):
            self.on_event(Warned(told))
        run.remove(BAD_IMAGES)  # of an earlier attempt, whose bad images are in its checkpoint
        images = self.plan.images + len(self.data.bad) + self.data.held_out
        self.ledger = BadImageLedger(run, images, self.plan.max_bad, session.resume_command)
        self.ledger.note([*self.data.bad, *stored.bad])
        task.left_out = tuple(stored.left_out)
        self.ledger.list_measured(task.left_out)
        self.saver = Saver(task, run, compute, scaler, self.ledger, self.on_event, last_saved=self.state.step)
        self.divergence = DivergenceCheck(self.saver)
        self.interval = Interval(self.state.step)
        self.metric_log = MetricLog(make_writers(session.config) if compute.world.is_rank_zero else {}, self.on_event)
        compute.world.run_on_rank_zero(lambda: self.metric_log.start(run, session.config, self.state.step))
        images = getattr(session.config, "previews", 0)
        previews = PreviewWriter(task, run, self.plan, images, self.state.step, compute.world)
        self.measuring = Measuring(task, self.plan, compute, session.stop, previews, self.on_event)
        return self.state

    def fetch(self, batches: Iterator[DeviceBatch]) -> DeviceBatch:
        """Returns this rank's part of the next batch."""
        self.saver.poll_writer()
        begun = time.perf_counter()
        moved = next(batches)
        self.interval.waited += time.perf_counter() - begun
        if self.compute.world.size == 1:
            self.ledger.note(moved.batch.bad)
        return moved

    def gather_bad(self) -> None:
        """Adds the unreadable images of all ranks, in rank order, to the ledger of every rank."""
        world = self.compute.world
        if world.size > 1:
            self.ledger.note([record for records in world.gather(self.interval.bad) for record in records])

    def seed_step(self) -> None:
        """Seeds what a network draws by itself (timm's drop path): other numbers on each rank, whose images differ."""
        word = keyed_integer(self.plan.seed, "step", self.compute.world.rank, self.state.step)
        seed_generators(word, self.compute.device)

    def with_uniforms(self, tensors: Tensors) -> Tensors:
        """Adds the step's uniform random numbers (drop path, samplers) to the batch, if the task uses any."""
        if not self.task.num_uniforms:
            return tensors
        uniforms = sample_step_uniforms(self.plan, self.task.num_uniforms, self.state.step, self.compute.world)
        return tensors | {"uniforms": to_device(uniforms, self.compute.device)}

    def step(self, tensors: Tensors) -> None:
        """Runs one optimizer step, compiled before the first one; adds its metrics to the interval."""
        try:
            if not self.is_prepared:
                self._prepare(tensors)
            skipped = optimizer_step(self.task, self.plan, tensors, self.compute, self.saver.scaler, self.interval.sums)
        except torch.OutOfMemoryError:
            raise no_room(self.task, self.plan, self.compute.world) from None
        self.divergence.count(skipped)

    def _prepare(self, tensors: Tensors) -> None:
        """Finds the micro-batch size and compiles, with the first batch; both advance the step's random generators."""
        task, compute = self.task, self.compute
        is_fresh = self.state.step == 0 and compute.device.type == "cuda" and compute.world.size == 1
        if self.plan.finds_micro_batch and is_fresh:
            self.plan = find_micro_batch_size(task, self.plan, tensors, compute)
            self.on_event(Note(f"{task.name}: {self.plan.micro_batch} images fit on the device at once."))
        compile_ahead(task, self.plan, tensors, compute, self.on_event)
        self.is_prepared = True
        self._limit_evaluation()
        self.interval.begin()
        self.seed_step()

    def _limit_evaluation(self) -> None:
        """Has no more images computed at once than a step of training does, on a GPU: no more are known to fit."""
        if self.compute.device.type == "cuda":
            self.task.fits = max_micro_batch(self.plan, self.compute.world)

    def training_metrics(self) -> dict[str, float]:
        """Returns the metrics of the interval and of the task, and the stall of the previous save."""
        task, saver = self.task, self.saver
        metrics = self.interval.metrics(task, self.plan, self.state, self.compute.world)
        self.divergence.require_finite(metrics, self.state.step)
        metrics |= task.log_metrics()
        if task.compiled is not None and (task.compiled.is_compiled or task.compiled.failure):
            metrics["compiled"] = float(task.compiled.is_compiled)
        if saver.stall:
            metrics["save_stall_seconds"], saver.stall = saver.stall, 0.0
        return metrics

    def evaluate(self, metrics: dict[str, float]) -> bool:
        """Adds metrics of held-out images, if due, to `metrics` and the state; returns whether a signal interrupted it.

        Draws previews.
        """
        try:
            found = self.measuring.run(self.state)
            new = self._note_left_out()
        except DataError:  # on all ranks: held-out images cannot be read, which costs no step
            self.ledger.list_measured(self.task.left_out)
            if self.saver.last_saved != self.state.step:
                self.saver.save(self.plan, self.state)
            raise
        if found.metrics is not None:
            held_out = {f"held_out_{name}": value for name, value in found.metrics.items()}
            self.divergence.require_finite(held_out, self.state.step)  # where measured, such weights are not saved
            self.state.metrics = found.metrics
            if new:
                self.on_event(Warned(left_out_text(new, "measured image")))
            metrics |= held_out | found.watched
        if found.picture is not None:
            self.metric_log.picture(self.state.step, "previews", found.picture)
        return found.is_interrupted

    def _note_left_out(self) -> list[Bad]:
        """Lists unreadable held-out images; returns those that are new. Raises DataError if they are too many."""
        new = self.ledger.list_measured(self.task.left_out)
        if not self.task.has_own_validation:
            self.ledger.note(self.task.left_out)
        return new

    def evaluate_if_missing(self) -> None:
        """Evaluates, logs and saves again if a stop interrupted the evaluation of this step, where one was due."""
        if self.state.metrics is not None or self.state.step not in self.measuring.due_at:
            return
        metrics: dict[str, float] = {}
        if self.evaluate(metrics):
            self.stop_here()
        self.log(metrics)
        self.saver.save(self.plan, self.state)
        self.saver.wait_on_all_ranks()
        self.interval.begin()

    def log(self, metrics: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl and to every other metric writer, and emits an event."""
        step, plan = self.state.step, self.plan
        self.metric_log.write(step, {"epoch": round(plan.epoch(step), 4)} | metrics)
        classes, on_training = len(self.task.classes), self.task.on_training
        self.on_event(Progress(self.task.name, step, plan.steps, "step", metrics, classes, on_training))

    def save(self) -> StorageError | None:
        """Starts a save; returns the error of the previous checkpoint, which all ranks learn at the next step."""
        try:
            self.saver.save(self.plan, self.state)
        except StorageError as error:
            return error
        return None

    def stop_here(self) -> NoReturn:
        """Saves and raises Stopped, on all ranks."""
        saver, state, stop = self.saver, self.state, self.session.stop
        stop.received = self.compute.world.all_reduce_max(stop.received or 0)
        saver.wait_on_all_ranks()
        if saver.last_saved != state.step or not state.step:
            self.task.log_metrics()  # sums the counts of all ranks
            saver.save(self.plan, state)
            saver.wait_on_all_ranks()
        if state.step:  # the page itself is not written here: it may take longer than a scheduler waits
            page = shell_line(["beit", "report", self.session.run.path])
            self.on_event(Note(f"{self.task.name}: the report so far: {page}"))
        message = f"by {signal_words(stop.received)} at step {state.step}{self.session.part}; progress is saved."
        raise stop.stopped(message, self.session.resume_command)
