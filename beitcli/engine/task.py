"""What a job brings to the training loop: how long, and its `Task`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from beitcli.models.references import state_tensors
from beitcli.runtime.compiled import compiled
from beitcli.runtime.device import Compute
from beitcli.runtime.distributed import parallel
from beitcli.runtime.sharding import is_sharded, shard, summed_later

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
        draws: Uniform numbers that the loop gives each image of a batch as `draws` (B, draws): 0 for none.
        forward: The model as training calls it: gradients shared between processes, compiled.
        poll: Called between batches of a measurement, by all processes alike; raises where the run is to stop.
    """

    name: str
    kind: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    draws: int = 0
    forward: Callable[..., Any]
    parallel: nn.Module | None = None

    def share_gradients(
        self,
        compute: Compute,
        *,
        compile_model: bool = False,
        all_used: bool = True,
        sharded: bool = False,
        compression: str = "none",
    ) -> None:
        """Sets `forward`, so that gradients are averaged over processes while the backward pass runs.

        Args:
            all_used: Whether every parameter has a gradient in every step.
            sharded: Whether each process keeps its part of the model only; before the optimizer is made.
            compression: Of the gradients on their way between processes that each keep a whole model: `none` or `bf16`.
        """
        if sharded and compute.world.size > 1:
            shard(self.model, self.model.blocks, compute.world, compute.dtype)  # type: ignore[arg-type]
            self.parallel = self.model
        else:
            self.parallel = parallel(self.model, compute.world, all_used=all_used, compression=compression)
        self.forward = compiled(self.parallel, compile_model)

    def unshared(self) -> AbstractContextManager[Any]:
        """A context whose backward passes leave the sharing to the last one of a step."""
        if is_sharded(self.model):
            return summed_later(self.model)
        no_sync = getattr(self.parallel, "no_sync", None)
        return no_sync() if no_sync else nullcontext()

    def poll(self) -> None:  # noqa: B027 - the loop puts its own in place
        """Nothing asks for a stop outside the loop."""

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

    def monitor(self) -> dict[str, float]:
        """Figures to watch at each save, of the model in evaluation mode; in the log alone, never in a checkpoint."""
        return {}

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
