"""Device, precision, process group and worker counts of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from beitcli.config.common import Launched
from beitcli.errors import UsageError
from beitcli.runtime.compute.cpu_matmul import ONEDNN, TORCH, Arithmetic, matmul_by, route_matmul
from beitcli.runtime.distributed.cores import available_cores
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext, join
from beitcli.runtime.metric_text import counted

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SMALL_STEP = 1 << 16  # pixels


@dataclass(frozen=True)
class Compute:
    """Device, precision and process group of a job.

    Attributes:
        precision: fp32, tf32, bf16 or fp16; weights and optimizer state stay fp32. tf32 is fp32 whose matrix products
            and convolutions round their factors to 10 bits of mantissa; CUDA only.
        matmul: Library of fp32 products on a CPU.
        steps: Arithmetic of training steps, where that is another: what is measured, kept or predicted does not depend
            on what was fast on this machine.
    """

    device: torch.device
    precision: str
    world: DistributedContext = SINGLE_PROCESS
    matmul: str = TORCH
    steps: Arithmetic | None = None

    @property
    def training(self) -> Compute:
        """The `Compute` of training steps, forward and backward."""
        if self.steps is None:
            return self
        return replace(self, precision=self.steps.precision, matmul=self.steps.matmul, steps=None)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of matrix products."""
        return _DTYPES.get(self.precision, torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context of a forward pass.

        It also sets whether fp32 products use TF32 (CUDA), or which library they use (CPU), beyond the context: the
        backward pass runs outside it.
        """
        if self.device.type == "cuda":
            allow_tf32(self.precision == "tf32")
        else:
            route_matmul(self.matmul)
        if self.precision in ("fp32", "tf32"):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the gradient scaler, which is enabled for fp16 only."""
        return torch.amp.GradScaler("cuda" if self.device.type == "cuda" else "cpu", enabled=self.precision == "fp16")


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of `device`.

    `torch.manual_seed` does so for all kinds of devices, and formats stack traces for those that have not started.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def allow_tf32(allowed: bool) -> None:
    """Sets whether CUDA computes fp32 matrix products and convolutions in TF32, cuDNN's default.

    torch.backends has two APIs for this, and torch raises if one reads what the other has set. The older one is used
    here, because torch.compile (2.11 to 2.14) reads both.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32_set(device: torch.device, allowed: bool) -> Iterator[None]:
    """Context with or without TF32 on CUDA, whatever the precision around it.

    On a CPU fp32 products are computed by torch's own library, whatever that of the steps around it.
    """
    if device.type != "cuda":
        with matmul_by(TORCH):
            yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        allow_tf32(before)


def tf32_disabled(device: torch.device) -> AbstractContextManager[None]:
    """Context without TF32, whatever the precision around it."""
    return tf32_set(device, False)


def choose_compute(device: str, precision: str) -> Compute:
    """Resolves `auto` to CUDA if available, else to the CPU.

    mps must be requested explicitly: this code has not run on it yet, it has no float64 sums, and torch's static-shaped
    `nonzero` came to it late.

    Raises:
        UsageError: The device is not available, or does not support the precision.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    if (device == "cuda" and not cuda) or (device == "mps" and not mps):
        raise UsageError(f"--device {device}: torch sees no such device here.", "Use --device auto.")
    if precision == "auto":
        precision = "bf16" if device == "cuda" else "fp32"
    if precision == "tf32" and device != "cuda":
        raise UsageError(f"--precision tf32 needs an NVIDIA GPU; this computes on {device}.", "Give fp32 or bf16.")
    if device == "cuda":
        allow_tf32(precision == "tf32")
    return Compute(torch.device(device), precision)


def join_compute(config: Launched, alone: Compute | None = None) -> Compute:
    """Like `choose_compute`, and joins the process group of the job if there is one, with one GPU per rank.

    Args:
        alone: A `Compute` that has been chosen already.

    Raises:
        DistributedError: The other ranks cannot be reached.
    """
    alone = alone or choose_compute(config.device, config.precision)
    world = join(alone.device, config.gpus, config.process_timeout)
    if world.size == 1:
        return alone
    device = torch.device("cuda", world.gpu) if alone.device.type == "cuda" else alone.device
    return replace(alone, device=device, world=world)


def is_small_step(device: torch.device, pixels: int) -> bool:
    """Whether a step has too few pixels to be worth several threads on a CPU.

    16 images of 32 x 32 through the `tiny` tokenizer, on two cores: 350 images/s with one thread, 450 with two. With
    one core busy 290 and 58, as threads wait for each other at every layer.
    """
    return device.type == "cpu" and pixels <= _SMALL_STEP


@contextmanager
def one_thread() -> Iterator[None]:
    """Context with a single torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_workers(
    workers: int, device: torch.device, world: DistributedContext = SINGLE_PROCESS, *, training: bool = False
) -> int:
    """Returns the number of loader workers; on a CPU most cores are left to the training itself.

    Args:
        world: Its ranks have workers each, on their own share of the cores.
        training: Loads the batches of a training, for which one worker pays on two cores already: 1.1 to 1.3 times as
            many images a second (docs/performance.md). A short command would wait for the worker's start.
    """
    if workers >= 0:
        return workers
    cores = world.cores or len(available_cores())
    if device.type != "cpu":
        return min(16, cores - 1)
    return max(min(8, cores // 4), int(training and cores > 1))


def describe(compute: Compute) -> str:
    """Returns a description of the hardware, for a model card."""
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
    else:
        name = f"{compute.device.type} ({counted(torch.get_num_threads(), 'thread')})"
    many = f"{compute.world.size} x " if compute.world.size > 1 else ""
    trains = compute.training
    arithmetic = f"{trains.precision} (oneDNN)" if trains.matmul == ONEDNN else trains.precision
    return f"{many}{name}, {arithmetic}, torch {torch.__version__.split('+')[0]}"
