"""What the processes of a job settle as they join: a name for this attempt, a GPU each, their share of the cores."""

from __future__ import annotations

import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import torch.distributed as dist

from beitcli.runtime.distributed.cores import available_cores

_POLL_SECONDS = 0.05
_BOOT = Path("/proc/sys/kernel/random/boot_id")
Cores = tuple[str, tuple[int, ...]]  # a machine, and those of its cores that a process may run on


def gpu_index(local_rank: int, visible: int) -> int:
    """Returns this process's GPU, as an index among the `visible` ones.

    Where each process is given GPUs of its own (Slurm's `--gpus-per-task`), it sees those alone, counted from 0.
    """
    return local_rank % max(1, visible)


def agree_on_attempt(store: dist.Store, rank: int, size: int, seconds: float) -> str:
    """Returns a name that all processes of this attempt have, and no earlier attempt had. All must call this.

    torchrun's store outlives a restart, with all keys of the attempt before. The number of restarts is no such name: of
    several machines, only the one where a process has failed counts it.

    Raises:
        RuntimeError: A process did not answer in time.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"joining/{rank}", own)
        name = store.get(f"attempt of {own}").decode()  # waits for rank 0
        store.add(f"heard/{name}", 1)
        return name
    names, told = [f"joining/{other}" for other in range(1, size)], set()
    end = time.monotonic() + seconds
    while store.add(f"heard/{own}", 0) < len(names):
        if time.monotonic() > end:
            raise RuntimeError(f"not all {size} processes answered within {seconds:g} s")
        for other in store.multi_get(names) if store.check(names) else ():  # of an earlier attempt: nobody reads it
            if other not in told:
                store.set(f"attempt of {other.decode()}", own)
                told.add(other)
        time.sleep(_POLL_SECONDS)
    return own


def cores_here() -> Cores:
    """Returns this process's machine and cores."""
    boot = ""
    with suppress(OSError):
        boot = _BOOT.read_text().strip()
    return f"{socket.gethostname()} {boot}", available_cores()


def share_of_cores(mine: Cores, everyone: Sequence[Cores]) -> int:
    """Returns the number of cores that are this process's, each divided among the processes that may run on it.

    Slurm binds each task to cores of its own; processes of one launcher may all run on the same.
    """
    users = Counter(core for machine, cores in everyone if machine == mine[0] for core in cores)
    return max(1, int(sum(Fraction(1, users[core]) for core in mine[1])))
