"""Which image each process of a loader is reading, so that the death of one can be told in words.

A worker that the kernel ends for memory, or that crashes in a decoder, says nothing itself. It writes the number of
the image that it begins into memory shared with the process that trains. 8 bytes a worker, some microseconds an image.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import get_worker_info

from beitcli.data.sources.base import Source
from beitcli.errors import DataError
from beitcli.runtime.distributed.parent_death import end_with_parent

_NOTHING = -1
_HINTS = {
    "SIGKILL": "Where memory ran out, give fewer --workers or a smaller --micro-batch; else look at that image.",
    "SIGBUS": "Shared memory ran out: give fewer --workers, or a container more of it (docker run --shm-size 8g).",
}


class WorkerMonitor:
    """Shared by a loader's data set and its copies in the workers.

    Attributes:
        processes: The workers, once they are started.
    """

    def __init__(self, workers: int) -> None:
        self._reading = torch.full((workers,), _NOTHING, dtype=torch.int64).share_memory_()
        self.processes: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"processes": []}  # a worker that is not forked gets its own copy

    def begins(self, index: int) -> None:
        """Notes the image that this worker reads next; nothing in the process that trains."""
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = index

    def rests(self) -> None:
        """Notes that this worker reads none."""
        self.begins(_NOTHING)

    def death(self, source: Source) -> DataError | None:
        """What to say of workers that ended by themselves; None where all live or ended well."""
        for each in self.processes:
            if not any(each.exitcode for each in self.processes):
                each.join(0.2)  # its sockets close a moment before it is gone
        dead = [(number, each.exitcode) for number, each in enumerate(self.processes) if each.exitcode]
        if not dead:
            return None
        said = [self._ending(number, code, source) for number, code in dead]
        names = [_signal_name(-code) for _, code in dead]
        hint = next((_HINTS[name] for name in names if name in _HINTS), "Look at that image, or give --workers 0.")
        return DataError(f"{'; '.join(said)}.", hint)

    def _ending(self, number: int, code: int, source: Source) -> str:
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        index = int(self._reading[number])
        what = "between two batches" if index == _NOTHING else f"while it read image {index}, '{source.path(index)}'"
        pid = self.processes[number].pid
        return f"Loader process {number + 1} of {len(self.processes)} (pid {pid}) {how} {what}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def preserve_sigchld() -> Iterator[None]:
    """Keeps SIGCHLD as it is while a loader starts: torch's handler would raise in the middle of a step.

    The loader looks after its workers by itself, within 5 s, while a batch is awaited.
    """
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, former)


def terminate(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()


def prepare_worker(worker: int) -> None:
    """A loader's worker leaves signals to the process that trains: schedulers send them to every process of a job."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a SIGTERM to a worker ends the run without its last steps
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    """Waits for a SIGTERM of the process that trains; those of others pass by."""
    parent = multiprocessing.parent_process()  # os.getppid() may be a server that forks the workers
    pid = parent.pid if parent else os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        continue
    os._exit(0)
