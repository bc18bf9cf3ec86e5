"""Reads rank and world size of this process from the launcher's environment variables (stdlib only).

torchrun and `runtime/distributed/launch.py` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Slurm's
`srun` sets SLURM_PROCID and related ones, with one task per process or one task per machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from beitcli.errors import UsageError

_MOST_HOSTS = 100_000
_SPANS = r"\[[0-9]{1,9}(?:-[0-9]{1,9})?(?:,[0-9]{1,9}(?:-[0-9]{1,9})?)*\]"
_HOST = re.compile(rf"(?:[^,\[\]\s]|{_SPANS})+")
_HOSTS = re.compile(rf"{_HOST.pattern}(?:,{_HOST.pattern})*")
_PORTS = range(15000, 30000)  # below the ephemeral ports
_STEP_APART = 4099  # a prime: steps of a job meet away from those of the jobs beside it


@dataclass(frozen=True)
class RankInfo:
    """Rank, world size and rendezvous address of one process.

    Attributes:
        address: Of the machine of rank 0.
        port: Port of the store of rank 0.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    restarts: int = 0


@dataclass(frozen=True)
class Allocation:
    """A Slurm step.

    Attributes:
        tasks: Number of tasks.
        task: Number of this task, from 0.
        hosts: Names of its machines.
        step: Number of this step among those of its job.
    """

    tasks: int
    task: int
    local_task: int
    hosts: tuple[str, ...]
    job: int
    step: int = 0

    @property
    def port(self) -> int:
        """The same in every task of the step, and unlikely to be that of another step or job on the machine."""
        return _PORTS[(self.job + _STEP_APART * self.step) % len(_PORTS)]


def rank_info_from_env(environ: Mapping[str, str] | None = None) -> RankInfo | None:
    """Returns rank and world size of this process; None if it is the only one, or has to launch the others first."""
    environ = os.environ if environ is None else environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        size = _number(environ, "WORLD_SIZE")
        rank = _number(environ, "RANK")
        if size == 1:
            return None
        return RankInfo(
            rank=rank,
            size=size,
            local_rank=_number(environ, "LOCAL_RANK", rank),
            local_size=_number(environ, "LOCAL_WORLD_SIZE", size),
            address=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(environ, "MASTER_PORT", 29500),
            restarts=_number(environ, "TORCHELASTIC_RESTART_COUNT", 0),
        )
    step = slurm_step(environ)
    if step is None or step.tasks == 1 or step.tasks == len(step.hosts):
        return None
    return RankInfo(
        rank=step.task,
        size=step.tasks,
        local_rank=step.local_task,
        local_size=_tasks_here(environ, step),
        address=step.hosts[0],
        port=step.port,
    )


def slurm_step(environ: Mapping[str, str]) -> Allocation | None:
    """Returns the Slurm step of which this process is a task; None outside Slurm, and in the batch script itself."""
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        return None
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", 1))
    names = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "localhost"
    return Allocation(
        tasks=tasks,
        task=_number(environ, "SLURM_PROCID"),
        local_task=_number(environ, "SLURM_LOCALID", 0),
        hosts=tuple(expand_hosts(names)),
        job=_number(environ, "SLURM_JOB_ID", 0),
        step=_number(environ, "SLURM_STEP_ID"),
    )


def expand_hosts(names: str) -> list[str]:
    """Expands Slurm's host list, such as `gpu[01-03,7],login`.

    Raises:
        UsageError: It is no such list, or of more than 100,000 machines.
    """
    hosts: list[str] = []
    if _HOSTS.fullmatch(names):
        for part in _HOST.findall(names):
            hosts += islice(_expand_one(part), _MOST_HOSTS + 1 - len(hosts))
    if not 0 < len(hosts) <= _MOST_HOSTS:
        raise UsageError(
            f"Slurm's list of machines is '{names[:200]}', which cannot be read.",
            "Unset SLURM_STEP_NODELIST and SLURM_JOB_NODELIST, or start with torchrun or --rdzv-endpoint.",
        )
    return hosts


def _expand_one(part: str) -> Iterator[str]:
    found = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if not found:
        yield part
        return
    before, inside, after = found.groups()
    for span in inside.split(","):
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from _expand_one(f"{before}{str(number).zfill(len(first))}{after}")


def _tasks_here(environ: Mapping[str, str], step: Allocation) -> int:
    """Returns the number of tasks on this machine, from a list such as `4(x2),3`."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    before = _number(environ, "SLURM_NODEID", 0)  # machines ahead of this one
    for count, times in re.findall(r"(\d{1,9})(?:\(x(\d{1,9})\))?", text):
        if before < int(times or 1):
            return int(count)
        before -= int(times or 1)
    return -(-step.tasks // len(step.hosts))


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise UsageError(
            f"The launcher's variable {name} is '{text or ''}', which is no whole number.",
            "Unset it, or start with torchrun, srun or --gpus.",
        ) from None
