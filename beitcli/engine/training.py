"""The one training loop, shared by train-tokenizer, pretrain and finetune.

A job brings a `Task` (model, loss, schedule, measures); the loop brings order, arithmetic, metrics, checkpoints and
stops. Everything random in a step follows from (seed, step), so a run that goes on from a checkpoint equals one that
was never stopped, bit for bit on a CPU. Between logging steps nothing waits for the device.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from beitcli.data.loader import Batch
from beitcli.engine.bad_images import Bad, BadImageLedger
from beitcli.engine.events import Note, OnEvent, Planned, Progress, Saved, warn
from beitcli.engine.micro_batch import fitting
from beitcli.engine.stored_progress import stored_progress
from beitcli.engine.transfer import on_device
from beitcli.errors import DivergedError, StorageError, UsageError
from beitcli.models.references import state_tensors
from beitcli.runtime.checkpoint import newest_checkpoint, save_checkpoint
from beitcli.runtime.device import Compute
from beitcli.runtime.keyed import keyed_integer
from beitcli.runtime.optim import load_optimizer_tensors, optimizer_tensors, set_learning_rate
from beitcli.runtime.run_folder import RunFolder
from beitcli.runtime.signals import StopRequest

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and in which portions.

    Attributes:
        images: Of one epoch.
        micro_batch: Images of one forward pass.
        finds_micro_batch: Whether that may be tried out on the device.
    """

    seed: int
    images: int
    steps: int
    batch_size: int
    micro_batch: int
    warmup_steps: int
    clip: float | None
    save_every: int
    log_every: int
    keep: int
    max_bad: float
    data_fingerprint: str
    finds_micro_batch: bool = False

    def epoch(self, step: int) -> float:
        return step * self.batch_size / self.images


class Task(ABC):
    """What one job puts into the loop.

    Attributes:
        name: Of the phase, for people.
        model: What is trained; its weights are the checkpoint's model.safetensors.
        kind: Of the checkpoint, in its config.json.
    """

    name: str
    kind: str
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Mean loss of a micro-batch on the device, and detached scalars to average and log."""

    @abstractmethod
    def learning_rate(self, step: int) -> float: ...

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        """Sets what follows the step (a temperature), or changes the whole batch (mixup)."""
        return batch

    def after_step(self, step: int) -> None:  # noqa: B027 - most tasks need none
        """Follows the optimizer (a moving average)."""

    def figures(self) -> dict[str, float]:
        """Further figures for the log, asked for only when logging."""
        return {}

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Figures on held-out images; must not change anything that training reads."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the checkpoint's config.json must hold to open it again."""

    def settings_of_others(self) -> dict[str, Any]:
        """What it must hold beside that for other programs to open it."""
        return {}

    def weights(self) -> Tensors:
        """What model.safetensors holds."""
        return state_tensors(self.model)

    def extra_tensors(self) -> Tensors:
        """State of the task beside model and optimizer."""
        return {}

    def load_extra_tensors(self, tensors: Tensors) -> None:  # noqa: B027 - most tasks need none
        """The inverse of `extra_tensors`."""


@dataclass
class Progressed:
    """Where a run stands; saved with each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    figures: dict[str, float] | None = None


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
) -> Progressed:
    """Trains to `plan.steps`, from the newest whole checkpoint where there is one.

    Args:
        batches_from: (images_seen, steps) to the batches from there on.
        resume_command: What a person runs to go on after a stop.
        planned: Told unless the run is finished already.
        bad_before: Images found unreadable before the first step.

    Raises:
        DivergedError: Loss or gradient is not finite; the last checkpoint is from before.
        DataError: More bad images than allowed.
        Stopped: A signal asked for it; progress is saved.
    """
    scaler = compute.scaler()
    state, bad, stored = _load(task, plan, run, compute, scaler, on_event)
    if plan.finds_micro_batch and stored:  # nothing else is asked for: as before, to the last bit
        plan = replace(plan, micro_batch=stored)
    finds = plan.finds_micro_batch and state.step == 0 and compute.device.type == "cuda"
    if state.step < plan.steps:
        on_event(planned)
    run.rewind_metrics(state.step)
    run.write_text("bad-images.jsonl", "")
    ledger = BadImageLedger(run, plan.images, plan.max_bad, resume_command)
    ledger.note([*bad_before, *bad])

    def save() -> None:
        path = save_checkpoint(
            run.checkpoints,
            state.step,
            model=task.weights(),
            config={"kind": task.kind} | task.settings(),
            beside=task.settings_of_others(),
            trainer_tensors=optimizer_tensors(task.model, task.optimizer)
            | {f"task/{name}": tensor for name, tensor in task.extra_tensors().items()},
            trainer={
                "step": state.step,
                "images_seen": state.step * plan.batch_size,
                "seconds": state.seconds,
                "images_per_second": state.images_per_second,
                "figures": state.figures,
                "data": plan.data_fingerprint,
                "bad": ledger.records,
                "scaler": scaler.state_dict(),
                "micro_batch": plan.micro_batch,
            },
            keep=plan.keep,
        )
        on_event(Saved(str(path), state.step))

    task.model.train()
    sums: Tensors = {}
    since, logged_step = time.perf_counter(), state.step
    last_saved = state.step
    batches = on_device(batches_from(state.step * plan.batch_size, plan.steps - state.step), compute.device)
    while state.step < plan.steps:
        batch, tensors = next(batches)
        ledger.note(batch.bad)
        torch.manual_seed(keyed_integer(plan.seed, "step", 0, state.step))
        set_learning_rate(task.optimizer, task.learning_rate(state.step))
        tensors = task.before_step(state.step, tensors)
        if finds:
            finds, plan = False, fitting(task, plan, tensors, compute)
            on_event(Note(f"{task.name}: {plan.micro_batch} images fit on the device at once."))
            torch.manual_seed(keyed_integer(plan.seed, "step", 0, state.step))
        try:
            optimizer_step(task, plan, tensors, compute, scaler, sums)
        except torch.OutOfMemoryError:
            raise UsageError(
                f"The device has not enough memory for {plan.micro_batch} images at once.",
                f"Give --micro-batch {max(1, plan.micro_batch // 2)}; --batch-size stays as it is.",
            ) from None
        task.after_step(state.step)
        state.step += 1

        last = state.step == plan.steps
        stopping = bool(stop) and not last
        saving = last or stopping or state.step % plan.save_every == 0
        if saving or state.step % plan.log_every == 0:
            taken = time.perf_counter() - since
            state.seconds += taken
            state.images_per_second = (state.step - logged_step) * plan.batch_size / max(taken, 1e-9)
            figures = _averages(sums, state.step - logged_step)
            figures |= {"lr": task.learning_rate(state.step - 1), "images_per_second": state.images_per_second}
            _require_finite(figures, state.step, last_saved, resume_command)
            figures |= task.figures()
            if saving and not stopping:
                task.model.eval()
                measured = task.measure()
                task.model.train()
                held_out = {f"held_out_{name}": value for name, value in measured.items()}
                _require_finite(held_out, state.step, last_saved, resume_command)  # no checkpoint of spoilt weights
                state.figures = measured
                figures |= held_out
            line = {"step": state.step, "epoch": round(plan.epoch(state.step), 4)}
            run.append_json("metrics.jsonl", line | {k: v for k, v in figures.items() if math.isfinite(v)})
            on_event(Progress(task.name, state.step, plan.steps, "step", figures))
            sums.clear()
            since, logged_step = time.perf_counter(), state.step
        else:
            on_event(Progress(task.name, state.step, plan.steps))
        if saving:
            save()
            last_saved = state.step
            since = time.perf_counter()
        if stopping:
            raise stop.stopped(f"By a signal at step {state.step}; progress is saved.", resume_command)
    return state


def optimizer_step(task: Task, plan: Plan, tensors: Tensors, compute: Compute, scaler: Any, sums: Tensors) -> None:
    """Forward and backward by micro-batches, gradient clipping, one optimizer step; adds the figures to `sums`."""
    task.optimizer.zero_grad(set_to_none=True)
    size = len(next(iter(tensors.values())))
    for start in range(0, size, plan.micro_batch):
        micro = {name: tensor[start : start + plan.micro_batch] for name, tensor in tensors.items()}
        share = len(next(iter(micro.values()))) / size
        with compute.autocast():
            loss, figures = task.loss(micro)
        scaler.scale(loss * share).backward()
        for name, value in (("loss", loss.detach()), *figures.items()):
            sums[name] = sums.get(name, 0) + value.float() * share
    scaler.unscale_(task.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in task.model.parameters() if p.grad is not None])
    if plan.clip is not None:
        nn.utils.clip_grads_with_norm_(task.model.parameters(), plan.clip, norm)
    if scaler.is_enabled():  # fp16 finds its scale by overflowing; such a step is skipped, not lost
        norm = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))
    sums["gradient_norm"] = sums.get("gradient_norm", 0) + norm.detach()
    scaler.step(task.optimizer)
    scaler.update()


def _averages(sums: Tensors, steps: int) -> dict[str, float]:
    """One transfer from the device for all figures."""
    if not sums:
        return {}
    values = torch.stack([value.reshape(()).float() for value in sums.values()]).div(steps).tolist()
    return dict(zip(sums, values, strict=True))


def _require_finite(figures: dict[str, float], step: int, last_saved: int, resume_command: str) -> None:
    must = ("loss", "gradient_norm")
    wrong = [name for name, value in figures.items() if not math.isfinite(value) and name.endswith(must)]
    wrong = wrong or [name for name, value in figures.items() if math.isnan(value)]
    if wrong:
        kept = f"The checkpoint of step {last_saved} is from before." if last_saved else "No checkpoint was saved yet."
        raise DivergedError(
            f"Training diverged: {' and '.join(wrong)} not finite by step {step}. {kept}",
            "Start a new run with a lower --lr, more --warmup-steps, or --precision fp32.",
        )


def _load(
    task: Task, plan: Plan, run: RunFolder, compute: Compute, scaler: Any, on_event: OnEvent
) -> tuple[Progressed, list[Bad], int]:
    """Puts the newest whole checkpoint into the task; a fresh state where there is none.

    Returns:
        Where the run stands, its bad images, and its micro-batch (0 where none is stored).
    """
    checkpoint = newest_checkpoint(run.path)
    if checkpoint is None:
        return Progressed(), [], 0
    warn(checkpoint.damaged, on_event)
    trainer = stored_progress(checkpoint)
    if trainer["data"] != plan.data_fingerprint:
        raise UsageError(
            f"The data is not what run '{run.path}' was trained on: images were added, removed or renamed.",
            "Restore the data, or start a new run with another --out.",
        )
    try:
        task.model.load_state_dict(checkpoint.model_tensors())
        tensors = checkpoint.trainer_tensors()
        extra = {name.removeprefix("task/"): t for name, t in tensors.items() if name.startswith("task/")}
        rest = {name: t for name, t in tensors.items() if not name.startswith("task/")}
        load_optimizer_tensors(task.model, task.optimizer, rest)
        if scaler.is_enabled():
            scaler.load_state_dict(trainer["scaler"])
        task.load_extra_tensors({name: tensor.to(compute.device) for name, tensor in extra.items()})
    except (RuntimeError, KeyError) as error:
        raise StorageError(
            f"Checkpoint '{checkpoint.path}' is of another architecture: {str(error).splitlines()[0]}",
            "Start a new run with another --out.",
        ) from None
    if trainer["step"] < plan.steps:
        on_event(Note(f"{task.name}: going on from step {trainer['step']} ({checkpoint.path})"))
    else:
        on_event(Note(f"{task.name}: '{run.path}' is finished, all {plan.steps} steps; nothing is trained."))
        again = f"--config {run.path}/config.toml --steps {2 * plan.steps} --out NEW"
        on_event(Note(f"To train longer, start a new run: {again}"))
    state = Progressed(trainer["step"], trainer["seconds"], trainer["images_per_second"], trainer["figures"])
    return state, [(index, path, reason) for index, path, reason in trainer["bad"]], trainer.get("micro_batch", 0)
