"""What a job brings to the training loop: how long, on which batches, into which run folder, and its `Task`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from beitcli.data.loading.batches import Batch
from beitcli.engine.trainer.bad_images import Bad
from beitcli.models.networks.blocks import disable_flex
from beitcli.runtime.compute.attention_choice import AttentionChoice
from beitcli.runtime.compute.compile import CompiledModule
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.fsdp import defer_reduction, is_sharded, shard
from beitcli.runtime.distributed.world import parallel
from beitcli.runtime.signals import StopRequest
from beitcli.runtime.storage.run_dir import RunFolder

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunSession:
    """An opened run folder, and how this process is asked to leave it.

    Attributes:
        resume_command: What a person runs to go on after a stop.
    """

    run: RunFolder
    stop: StopRequest
    resume_command: str


@dataclass(frozen=True)
class TrainingBatches:
    """What a run trains on.

    Attributes:
        start: (images_seen, steps) to this process's part of the batches from there on.
        bad: Images found unreadable before the first step, beside the plan's.
        path_of: Index of a training image to what names it.
    """

    start: Callable[[int, int], Iterator[Batch]]
    bad: Sequence[Bad] = ()
    path_of: Callable[[int], str] = "image {}".format


def never_stop() -> None:
    """The `check_stop` of a measurement that nobody interrupts."""


class Task(ABC):
    """What one job puts into the loop.

    Attributes:
        name: Of the phase, for people.
        model: What is trained; its weights are the checkpoint's model.safetensors.
        kind: Of the checkpoint, in its config.json.
        draws: Uniform numbers that the loop gives each image of a batch as `draws` (B, draws): 0 for none.
        takes_padding: Whether `loss` leaves out images where a micro-batch has `valid` (B,) False.
        compiled: What the forward pass goes through; says whether it is compiled.
        forward: `compiled` as training calls it, its gradients averaged over processes.
        attention: The attention kernel that was chosen by trial; None where torch chooses.
    """

    name: str
    kind: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    num_uniforms: int = 0
    takes_padding: bool = False
    compiled: CompiledModule | None = None
    attention: AttentionChoice | None = None
    forward: Callable[..., Any]
    parallel: nn.Module | None = None

    def wrap_parallel(
        self,
        compute: Compute,
        objective: nn.Module | None = None,
        *,
        compile_step: bool = False,
        all_used: bool = True,
        sharded: bool = False,
        compression: str = "none",
    ) -> None:
        """Sets `compiled` and `forward`, so that gradients are averaged while the backward pass runs.

        Args:
            objective: Holds `model` and computes the loss; None for the model itself.
            compile_step: Compile all of `objective`; of a sharded model each part that is computed between collectives.
            all_used: Whether every parameter has a gradient in every step.
            sharded: Whether each process keeps its part of the model only; before the optimizer is made.
            compression: Of the gradients on their way between processes that each keep a whole model: `none` or `bf16`.
        """
        objective = self.model if objective is None else objective
        if sharded and compute.world.size > 1:
            parts = shard(self.model, self.model.blocks, compute.world, compute.dtype)  # type: ignore[arg-type]
            self.parallel = self.model
            self.forward = self.compiled = CompiledModule(objective, enabled=compile_step, parts=parts)
        else:
            self.compiled = CompiledModule(objective, enabled=compile_step)
            self.forward = self.parallel = parallel(
                self.compiled, compute.world, all_used=all_used, compression=compression
            )

    def no_sync(self) -> AbstractContextManager[Any]:
        """A context whose backward passes leave the sharing of gradients to the last one of a step."""
        if is_sharded(self.model):
            return defer_reduction(self.model)
        no_sync = getattr(self.parallel, "no_sync", None)
        return no_sync() if no_sync else nullcontext()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Forward passes meanwhile are not compiled."""
        flexible = disable_flex(self.model)
        try:
            with self.compiled.eager() if self.compiled else nullcontext():
                yield
        finally:
            for module in flexible:
                module.use_flex = True

    def fall_back(self, cause: Exception | str) -> None:
        """The step runs eagerly from now on, its attention as well."""
        if self.compiled is not None:
            self.compiled.fall_back(cause)
        disable_flex(self.model)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Forward and backward passes meanwhile leave no trace in gradients, buffers and what the task counts."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def running(self) -> AbstractContextManager[Any]:
        """A context around the whole training, or its rehearsal: what is to be set or closed."""
        return nullcontext()

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

    def log_metrics(self) -> dict[str, float]:
        """Further figures for the log, asked for only when logging."""
        return {}

    @abstractmethod
    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Metrics of held-out images; must not change anything that training reads.

        Args:
            check_stop: Called between batches, by all processes alike; raises where the run is to stop.
        """

    def probe_metrics(self) -> dict[str, float]:
        """Figures to watch at each save, of the model in evaluation mode; in the log alone, never in a checkpoint."""
        return {}

    @abstractmethod
    def checkpoint_config(self) -> dict[str, Any]:
        """What the checkpoint's config.json must hold to open it again."""

    def timm_config(self) -> dict[str, Any]:
        """What it must hold beside that for other programs to open it."""
        return {}

    def weights(self) -> Tensors:
        """What model.safetensors holds."""
        return dict(self.model.state_dict())

    def extra_tensors(self) -> Tensors:
        """State of the task beside model and optimizer."""
        return {}

    def load_extra_tensors(self, tensors: Tensors) -> None:  # noqa: B027 - most tasks need none
        """The inverse of `extra_tensors`."""
