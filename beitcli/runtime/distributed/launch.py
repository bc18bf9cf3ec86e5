"""Launches the ranks of a job with torch's elastic agent (as torchrun does), and reports how they ended.

One launcher per node starts `python -m beitcli` with the same arguments for each local rank, restarts ranks, forwards
signals, and raises the first cause of a failure as one error. Problems seen on real machines, and what is done:

- the shared rendezvous store keeps keys of the previous attempt, so restarts fail: it is not shared;
- SIGUSR1, Slurm's early warning, would kill the launcher: it is forwarded like SIGTERM;
- saving may take longer than the 30 s of the shutdown timeout: the timeout is ten minutes;
- ranks would outlive a killed launcher: the kernel kills them too (`runtime/distributed/parent_death.py`).

The rendezvous of several nodes is in `runtime/distributed/rendezvous.py`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from beitcli.errors import BeitError, DistributedError, Interrupted, SignalStop, StorageError, UsageError
from beitcli.escaping import shell_word
from beitcli.runtime.distributed.cores import available_cores
from beitcli.runtime.distributed.failure_reports import (
    FOLDER_VARIABLE,
    STOPPING,
    Death,
    as_error,
    first_cause,
    read_failures,
    signals_recorded,
)
from beitcli.runtime.distributed.rank_env import rank_info_from_env, slurm_step
from beitcli.runtime.distributed.rendezvous import (
    CONNECT_SECONDS,
    DEFAULT_PORT,
    interface_of,
    own_address,
    rendezvous_error,
)
from beitcli.runtime.signals import signal_words

_SHUTDOWN_SECONDS = 600


@dataclass(frozen=True)
class Launch:
    """What a launcher starts on its node.

    Attributes:
        processes: Ranks on this node.
        nodes: Number of nodes.
        endpoint: HOST:PORT of the rendezvous; empty on a single node.
        threads: CPU threads per rank.
        rendezvous_seconds: Timeout of the rendezvous.
    """

    processes: int
    nodes: int = 1
    endpoint: str = ""
    threads: int = 1
    max_restarts: int = 0
    rendezvous_seconds: int = 600

    @property
    def size(self) -> int:
        return self.processes * self.nodes


def plan_launch(
    gpus: int, nodes: int, endpoint: str | None, device: str, words: Sequence[str], max_restarts: int, seconds: int
) -> Launch | None:
    """Plans the launch for `--gpus` and `--nodes`; None if this process is a rank itself, or the only process.

    Args:
        gpus: World size.
        words: The command-line arguments, for messages.

    Raises:
        UsageError: More GPUs than available, or several nodes without an endpoint.
    """
    if rank_info_from_env() is not None:
        return None
    step = slurm_step(os.environ)
    if step is not None and step.tasks > 1 and gpus > 1 and nodes == 1:  # one task per node
        nodes, endpoint = step.tasks, endpoint or f"{step.hosts[0]}:{step.port}"
    if step is not None and step.tasks > 1 and gpus == 1:
        raise UsageError(
            f"srun started {step.tasks} tasks of one job, but --gpus is 1.",
            "Add --gpus with the number of GPUs of all machines, or start a single task.",
        )
    if gpus == 1 and nodes == 1:
        return None
    if gpus % nodes:
        raise UsageError(
            f"--gpus {gpus} are not shared out evenly over --nodes {nodes}.",
            f"Give a multiple of {nodes} to --gpus: it counts those of all machines.",
        )
    here = gpus // nodes
    _require_gpus(here, gpus, nodes, device, words)
    if nodes > 1 and not endpoint:
        again = _command(words, gpus, nodes, f"$(hostname):{DEFAULT_PORT}")
        raise UsageError(
            f"--nodes {nodes} needs a place where the machines meet.",
            f"On the first: {again}   On the others the same, with the first one's name for $(hostname).",
        )
    return Launch(
        processes=here,
        nodes=nodes,
        endpoint=endpoint or "",
        threads=max(1, len(available_cores()) // here),
        max_restarts=max_restarts,
        rendezvous_seconds=seconds,
    )


def _require_gpus(here: int, gpus: int, nodes: int, device: str, words: Sequence[str]) -> None:
    if device == "cpu":
        return
    there = torch.cuda.device_count()
    if here <= there:
        return
    machines = nodes if nodes > 1 else -(-gpus // (there or 8))
    each = -(-gpus // machines)
    where = f"each of {machines} machines" if machines > 1 else f"a machine with {gpus} GPUs"
    ways = [
        f"On {where}: {_command(words, gpus, machines, f'HOST:{DEFAULT_PORT}')}",
        f"Under Slurm: srun --nodes={machines} --ntasks-per-node=1 --gpus-per-node={each} {_command(words, gpus)}",
    ]
    if not there and nodes == 1:
        ways.insert(0, f"As processes on this CPU: {_command(words, gpus, more=('--device', 'cpu'))}")
    request = f"{here} of --gpus {gpus} are for each of {nodes} machines" if nodes > 1 else f"--gpus is {gpus}"
    raise UsageError(f"{request}, but this machine has {there}.", "\n  ".join(ways))


def _command(words: Sequence[str], gpus: int, nodes: int = 1, endpoint: str = "", more: Sequence[str] = ()) -> str:
    """Returns the command line with other machines; `endpoint` may be a shell's expression."""
    kept: list[str] = []
    skip = False
    for word in words:
        name = word.partition("=")[0]
        if skip:
            skip = False
        elif name in ("--gpus", "--nodes", "--rdzv-endpoint"):
            skip = "=" not in word
        else:
            kept.append(word)
    machines = ["--nodes", str(nodes), "--rdzv-endpoint", endpoint] if nodes > 1 else []
    added = with_options(kept, "--gpus", str(gpus), *machines, *more)
    return " ".join(["beit", *(word if word == endpoint else shell_word(word) for word in added)])


def with_options(words: Sequence[str], *options: str) -> list[str]:
    """Returns a command line with further options, before the `--` behind which words are no options.

    Args:
        words: The command line after `beit`.
    """
    command = next((place for place, word in enumerate(words) if not word.startswith("-")), 0)
    end = words.index("--", command) if "--" in words[command:] else len(words)
    return [*words[:end], *options, *words[end:]]


def launch(words: Sequence[str], plan: Launch, tell: Callable[[str], None]) -> None:
    """Starts `beit` with these arguments on every local rank; returns when all have succeeded.

    Args:
        tell: Prints a line for the user.

    Raises:
        BeitError: The first cause of a failure on any rank; `Stopped` after a signal.
    """
    try:
        folder = tempfile.mkdtemp(prefix="beit-launch-")
    except OSError as error:
        raise StorageError(
            f"No temporary folder can be made: {error.strerror or error}.", "Free space, or set TMPDIR to a folder."
        ) from None
    try:
        address, hosts = own_address(plan.nodes, plan.endpoint)
        environment = {
            FOLDER_VARIABLE: folder,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(plan.threads)),
            # torch.compile would start a process a core in every rank.
            "TORCHINDUCTOR_COMPILE_THREADS": os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", str(plan.threads)),
            "BEIT_LAUNCHER": str(os.getpid()),
        }
        interface = interface_of(address)
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            environment["GLOO_SOCKET_IFNAME"] = interface
        with _environment(environment), _quiet_engine(), signals_recorded(folder), _signals_as_stops():
            _start(words, plan, folder, address, hosts, tell)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    words: Sequence[str], plan: Launch, folder: str, address: str, hosts: bool | None, tell: Callable[[str], None]
) -> None:
    where = f" of {plan.size} on {plan.nodes} machines, which meet at {plan.endpoint}" if plan.nodes > 1 else ""
    tell(f"Starting {plan.processes} processes{where}, {os.environ['OMP_NUM_THREADS']} threads each")
    config = LaunchConfig(
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        nproc_per_node=plan.processes,
        run_id="beit",
        rdzv_backend="c10d",
        rdzv_endpoint=plan.endpoint or "127.0.0.1:0",
        rdzv_configs={
            "timeout": plan.rendezvous_seconds,
            "join_timeout": plan.rendezvous_seconds,
            "read_timeout": CONNECT_SECONDS,
        }
        | ({} if hosts is None else {"is_host": hosts}),
        max_restarts=plan.max_restarts,
        monitor_interval=0.1,
        local_addr=address,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=",".join(_handled()),
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "beitcli", *words)
    except ChildFailedError as failed:
        deaths = [Death(rank, each.pid, each.exitcode, each.timestamp) for rank, each in failed.failures.items()]
        cause = first_cause(read_failures(folder), deaths, plan.size)
        if cause.trace and "--debug" in words:
            for line in cause.trace.splitlines():
                tell(line)
        raise as_error(cause, plan.size) from None
    except SignalException as stop:
        raise _stopped(folder, stop) from None
    except RendezvousTimeoutError:
        raise DistributedError(
            f"The {plan.nodes} machines did not meet at {plan.endpoint} within {plan.rendezvous_seconds} s.",
            "Start the same command, with the same --nodes, on every machine; --rdzv-timeout SECONDS waits longer.",
        ) from None
    except RendezvousError as error:
        raise rendezvous_error(plan.nodes, plan.endpoint, error) from None
    ended = [failure for failure in read_failures(folder) if not failure.is_peer_failure]
    if ended and ended[0].exit_code:
        raise as_error(ended[0], plan.size)


def _stopped(folder: str, stop: SignalException) -> BeitError:
    """Returns the error that the ranks reported when they were stopped, else one that nothing had to be saved."""
    said = [failure for failure in read_failures(folder) if not failure.is_peer_failure]
    if said:
        return as_error(said[0], len(said))
    kind = Interrupted if stop.sigval == signal.SIGINT else SignalStop
    return kind(f"by {signal_words(stop.sigval)}, before anything was to be saved.", "Run the command again.")


def _handled() -> list[str]:
    """Returns the signals to forward, except those that are ignored here, such as SIGHUP under nohup."""
    names = [name for name in STOPPING if hasattr(signal, name)]
    return [name for name in names if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]


@contextlib.contextmanager
def _signals_as_stops() -> Iterator[None]:
    """Context in which signals raise SignalStop or Interrupted, also when the agent's own handlers are not set."""

    def stop(number: int, frame: Any) -> None:
        raise (Interrupted if number == signal.SIGINT else SignalStop)(
            f"by {signal_words(number)}, before anything was to be saved.", "Run the command again."
        )

    numbers = [getattr(signal, name) for name in _handled()]
    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except SignalException as again:  # torch's handlers stay when its engine has ended, or a second signal came
        kind = Interrupted if again.sigval == signal.SIGINT else SignalStop
        raise kind(
            f"by {signal_words(again.sigval)}, at once.", "The last checkpoint is whole: go on with --resume."
        ) from again
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_engine() -> Iterator[None]:
    """Silences torch's loggers: `launch` reports the same in one line."""
    found = {name: each for name, each in logging.root.manager.loggerDict.items() if isinstance(each, logging.Logger)}
    loggers = [each for name, each in found.items() if name.startswith("torch.distributed")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
