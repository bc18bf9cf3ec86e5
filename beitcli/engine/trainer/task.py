"""Interface between a training job and the loop: the `Task`, its batches and its run folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import nn

from beitcli.config.common import Training
from beitcli.data.loading.batches import Batch
from beitcli.data.loading.kept_batches import KeptBatches
from beitcli.engine.trainer.bad_images import Bad, refuse_many_bad
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.plan import Plan
from beitcli.models.networks.efficient_attention import disable_flex
from beitcli.runtime.compute.attention_choice import AttentionChoice
from beitcli.runtime.compute.compile import CompiledModule
from beitcli.runtime.compute.device import Compute, choose_workers
from beitcli.runtime.distributed.data_parallel import parallel
from beitcli.runtime.distributed.fsdp import defer_reduction, is_sharded, shard
from beitcli.runtime.signals import StopRequest
from beitcli.runtime.storage.run_dir import RunFolder

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunSession:
    """An opened run folder, and the stop requests of this process.

    Attributes:
        config: Settings of the run.
        resume_command: Sentence with the command that resumes the run after a stop.
        part: Which part of the run the training is, to follow `step 3`; empty if it is all of it.
    """

    run: RunFolder
    stop: StopRequest
    config: Training
    resume_command: str
    part: str = ""


@dataclass(frozen=True)
class TrainingBatches:
    """Training batches of a run.

    Attributes:
        start: Maps (images_seen, steps) to this rank's batches from there on.
        bad: Images found unreadable before the first step, counted in addition to those of the plan.
        path_of: Maps the index of a training image to its path.
        held_out: Images of DATA that are measured and not trained on.
    """

    start: Callable[[int, int], Iterator[Batch]]
    bad: Sequence[Bad] = ()
    path_of: Callable[[int], str] = "image {}".format
    held_out: int = 0


def never_stop() -> None:
    """`check_stop` of an evaluation that is never interrupted."""


class Task(ABC):
    """Model, loss, schedule and evaluation of one job in the training loop.

    Attributes:
        name: Name of the phase in messages.
        plan: Its `batch_size` is that of the batches that `before_step` receives a part of.
        model: The trained network; its weights are the checkpoint's model.safetensors.
        kind: Kind of the checkpoint, in its config.json.
        classes: Names of the classes that it tells apart; none of a task without labels.
        num_uniforms: Uniform random numbers per image that the loop adds as `uniforms` (B, num_uniforms); 0 for none.
        least_micro_batch: Images that each forward pass of a step needs, those of all ranks together.
        fits: Images of a forward pass that are known to fit on the device, on all ranks alike; None where it is not
            known.
        takes_padding: Whether `loss` ignores the images of a micro-batch with `valid` (B,) False.
        compiled: Module of the forward pass; knows whether it is compiled.
        forward: `compiled` as training calls it, with gradients averaged over ranks.
        attention: The attention kernel selected by a benchmark; None if torch selects it.
        has_own_validation: Whether an evaluation is of a set of its own (`--val`, a split), of which `--max-bad` holds
            by itself; else unreadable ones of its images, held out of DATA, count with those of training.
        on_training: Whether an evaluation is of training images, where there are too few to hold any out.
        left_out: Unreadable images of the last evaluation, alike on all ranks.
    """

    name: str
    kind: str
    config: Training
    compute: Compute
    plan: Plan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    classes: tuple[str, ...] = ()
    num_uniforms: int = 0
    least_micro_batch: int = 1
    fits: int | None = None
    takes_padding: bool = False
    compiled: CompiledModule | None = None
    attention: AttentionChoice | None = None
    has_own_validation: bool = False
    on_training: bool = False
    left_out: tuple[Bad, ...] = ()
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
        """Sets `compiled` and `forward`; gradients are averaged over ranks during the backward pass (DDP or FSDP2).

        Args:
            objective: Module that holds `model` and computes the loss; None for the model itself.
            compile_step: Whether to compile `objective` as a whole; if sharded, each part between two collectives.
            all_used: Whether every parameter has a gradient in every step.
            sharded: Whether to shard the model (FSDP2); requires a call before the optimizer is built.
            compression: Gradient compression of the all-reduce, if the model is not sharded: `none` or `bf16`.
        """
        objective = self.model if objective is None else objective
        if sharded and compute.world.size > 1:
            parts = shard(self.model, self.sharded_blocks(), compute.world, compute.dtype)
            self.parallel = self.model
            self.forward = self.compiled = CompiledModule(objective, enabled=compile_step, parts=parts)
        else:
            self.compiled = CompiledModule(objective, enabled=compile_step)
            self.forward = self.parallel = parallel(
                self.compiled, compute.world, all_used=all_used, compression=compression
            )

    def sharded_blocks(self) -> Iterable[nn.Module]:
        """Returns the blocks that are sharded separately."""
        return self.model.blocks  # type: ignore[return-value] # a ModuleList

    def no_sync(self) -> AbstractContextManager[Any]:
        """Returns a context whose backward passes accumulate gradients without reducing them over ranks."""
        if is_sharded(self.model):
            return defer_reduction(self.model)
        no_sync = getattr(self.parallel, "no_sync", None)
        return no_sync() if no_sync else nullcontext()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Context in which forward passes are not compiled."""
        flexible = disable_flex(self.model)
        try:
            with self.compiled.eager() if self.compiled else nullcontext():
                yield
        finally:
            for module in flexible:
                module.use_flex = True

    def fall_back(self, cause: Exception | str) -> None:
        """Runs the step eagerly from now on, its attention included."""
        if self.compiled is not None:
            self.compiled.fall_back(cause)
        disable_flex(self.model)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Context whose forward and backward passes leave no trace in gradients, buffers and the task's counts."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])

    def at_once(self, images: int) -> int:
        """Returns how many images an evaluation computes at once: so many, or as many as fit."""
        return images if self.fits is None else min(images, self.fits)

    @cached_property
    def kept(self) -> KeptBatches:
        """The batches of the last evaluation, for the next."""
        return KeptBatches()

    def batching(self, batch_size: int, check_stop: Callable[[], None]) -> Batching:
        """How the held-out images are divided into batches: `batch_size` each where so many fit on the device."""
        workers = choose_workers(self.config.workers, self.compute.device, self.compute.world)
        return Batching(self.compute, self.at_once(batch_size), workers, check_stop=check_stop, kept=self.kept)

    def measuring_cost(self) -> float:
        """Returns what `evaluate` costs, as the number of images that a training step takes in the same time.

        0, the default, has it called at every save.
        """
        return 0.0

    def running(self) -> AbstractContextManager[Any]:
        """Returns a context around the whole training or dry run, to set up and close resources."""
        return nullcontext()

    @abstractmethod
    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Returns the mean loss of a micro-batch on the device, and detached scalars to average and log."""

    @abstractmethod
    def learning_rate(self, step: int) -> float: ...

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        """Updates what depends on the step (a temperature), and may change the whole batch (mixup)."""
        return batch

    def after_step(self, step: int) -> None:  # noqa: B027 - most tasks need none
        """Called after the optimizer step, for example to update a moving average."""

    def log_metrics(self) -> dict[str, float]:
        """Returns further metrics for the log; called only when logging."""
        return {}

    @abstractmethod
    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns metrics of held-out images. Must not change any state that training reads.

        Called again, with fewer images `at_once`, if the device had not enough memory.

        Args:
            check_stop: Called between batches, on all ranks alike; raises if the run is to stop.
        """

    def leave_out(self, bad: Sequence[Bad], images: int) -> None:
        """Notes the unreadable ones of the `images` of an evaluation. All ranks must call this, with those of all.

        Raises:
            DataError: They are all, or too many of a validation set of its own.
        """
        self.left_out = tuple(bad)
        limit = self.config.max_bad if self.has_own_validation else 1.0
        mend = "Mend them" if len(bad) == images else "Mend them or raise --max-bad"
        refuse_many_bad(bad, images, limit, f"{mend}, and add --resume.")

    def details(self) -> dict[str, Any] | None:
        """Returns what the report says of the last evaluation beyond its metrics, as plain values; None without.

        Called on rank 0 alone, after the last step.
        """
        return None

    def preview(self, images: int) -> Image.Image | None:
        """Returns a picture of what the model makes of held-out images, always the same; None if it makes none.

        Called on rank 0 alone, with the model in evaluation mode and whole. Must neither change state that training
        reads, nor draw from a global random generator, nor communicate.

        Args:
            images: How many to draw.
        """
        return None

    def probe_metrics(self) -> dict[str, float]:
        """Returns metrics to monitor after `evaluate`, with the model in evaluation mode; logged, not checkpointed."""
        return {}

    @abstractmethod
    def checkpoint_config(self) -> dict[str, Any]:
        """Returns the entries of the checkpoint's config.json that are needed to open it again."""

    def timm_config(self) -> dict[str, Any]:
        """Returns further entries of config.json that other programs need to open it."""
        return {}

    def weights(self) -> Tensors:
        """Returns the contents of model.safetensors."""
        return dict(self.model.state_dict())

    def extra_tensors(self) -> Tensors:
        """Returns the state of the task besides model and optimizer."""
        return {}

    def load_extra_tensors(self, tensors: Tensors) -> None:  # noqa: B027 - most tasks need none
        """Inverse of `extra_tensors`."""
