"""Where to compute and in which arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from beitcli.config.common import Launched
from beitcli.errors import UsageError
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext, join

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SMALL_STEP = 1 << 16  # pixels


@dataclass(frozen=True)
class Compute:
    """A device, the precision of the work on it, and the processes that share the work.

    Attributes:
        precision: fp32, tf32, bf16 or fp16; weights and optimizer stay fp32. tf32 is fp32 whose matrix products and
            convolutions round their factors to 10 bits of mantissa; CUDA only.
    """

    device: torch.device
    precision: str
    world: DistributedContext = SINGLE_PROCESS

    @property
    def dtype(self) -> torch.dtype:
        """Of matrices."""
        return _DTYPES.get(self.precision, torch.float32)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass. On CUDA it also says whether fp32 products may be TF32, from here on: the
        backward pass follows outside it."""
        if self.device.type == "cuda":
            allow_tf32(self.precision == "tf32")
        if self.precision in ("fp32", "tf32"):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only fp16 needs."""
        return torch.amp.GradScaler("cuda" if self.device.type == "cuda" else "cpu", enabled=self.precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Says whether CUDA computes fp32 matrix products and convolutions in TF32, which cuDNN does by default.

    torch.backends has two interfaces to this, and torch raises where one reads what the other has set. It is the older
    one here, as torch.compile (2.11 to 2.14) reads both.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """fp32 is fp32 inside, whatever the precision of the work around it; nothing to do without CUDA."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        allow_tf32(before)


def choose_compute(device: str, precision: str) -> Compute:
    """Resolves `auto`: CUDA, else the CPU.

    mps is taken only where it is asked for: this code has not run on it yet, float64 sums are not to be had there,
    and torch's static-shaped `nonzero` came to it late.

    Raises:
        UsageError: The device is not on this machine, or does not have the precision.
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
    """As `choose_compute`, with the other processes of the job where there are any; a GPU each.

    Args:
        alone: What was chosen already.

    Raises:
        DistributedError: They cannot be reached.
    """
    alone = alone or choose_compute(config.device, config.precision)
    world = join(alone.device, config.gpus, config.process_timeout)
    if world.size == 1:
        return alone
    device = torch.device("cuda", world.local_rank) if alone.device.type == "cuda" else alone.device
    return Compute(device, alone.precision, world)


@contextmanager
def threads_for(device: torch.device, pixels: int) -> Iterator[None]:
    """One torch thread inside, where a step of so many pixels is too small to share.

    16 images of 32 x 32 through the `tiny` tokenizer: 300 images a second on one thread and 289 on two; on
    two busy ones 150 and 24, as threads then wait for one another at every layer (docs/results.md).
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and pixels <= _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_workers(workers: int, device: torch.device, sharing: int = 1) -> int:
    """How many processes load images: on a CPU the training itself wants the cores.

    Args:
        sharing: Processes of the job on this machine, each of which loads its own.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // sharing)
    return min(16, cores - 1) if device.type != "cpu" else min(8, cores // 4)


def describe(compute: Compute) -> str:
    """The hardware in words, for a model card."""
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
    else:
        name = f"{compute.device.type} ({torch.get_num_threads()} threads)"
    many = f"{compute.world.size} x " if compute.world.size > 1 else ""
    return f"{many}{name}, {compute.precision}, torch {torch.__version__.split('+')[0]}"
