"""Records which image each loader worker is reading, so that the error for a dead worker names the image.

A worker that is killed for lack of memory, or crashes in a decoder, cannot report it. So each worker writes the index
of the image that it starts into memory shared with the main process: 8 bytes per worker, some microseconds per image.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import get_worker_info

from beitcli.data.sources.base import Source
from beitcli.errors import DataError
from beitcli.runtime.distributed.parent_death import end_with_parent
from beitcli.runtime.signals import signals_blocked

_NOTHING = -1
_DIED = re.compile(r"DataLoader worker \(pid[^)]*\)+ (is killed by signal: \w+|exited unexpectedly)")  # torch's words
_HINTS = {
    "SIGKILL": "Where memory ran out, give fewer --workers or a smaller --micro-batch; else look at that image.",
    "SIGBUS": "Shared memory ran out: give fewer --workers, or a container more of it (docker run --shm-size 8g).",
}


class WorkerMonitor:
    """Shared by a loader's dataset and its copies in the workers.

    Attributes:
        processes: The worker processes; empty until they are started.
    """

    def __init__(self, workers: int) -> None:
        self._reading = torch.full((workers,), _NOTHING, dtype=torch.int64).share_memory_()
        self.processes: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"processes": []}  # spawned workers get a pickled copy

    def begins(self, index: int) -> None:
        """Records the image that this worker reads next; does nothing in the main process."""
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = index

    def rests(self) -> None:
        """Records that this worker reads no image."""
        self.begins(_NOTHING)

    def death(self, source: Source) -> DataError | None:
        """Returns an error that describes workers that died; None if all are alive or exited normally."""
        for each in self.processes:
            if not any(each.exitcode for each in self.processes):
                each.join(0.2)  # its sockets close shortly before it exits
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


def death_at_start(error: Exception) -> DataError | None:
    """Returns an error for a worker that died while the others were started; None if torch's error says no such."""
    died = _DIED.match(str(error))
    return died and DataError(f"A loader process {died[1]}.", "Give fewer --workers; memory may have run out.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def starting_workers() -> Iterator[None]:
    """Context in which a loader starts its workers: they begin with signals blocked, and SIGCHLD keeps its handler.

    torch's handler would raise in the middle of a step. The loader also checks its workers, within 5 s, while it waits
    for a batch.
    """
    former = signal.getsignal(signal.SIGCHLD)
    try:
        with signals_blocked():
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, former)


def terminate(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()


def prepare_worker(worker: int, parent: int) -> None:
    """Makes a worker leave signals to the main process: schedulers send them to every process of a job.

    A forked worker starts with these signals blocked (`starting_workers`), so none finds it unprepared.

    Args:
        parent: PID of the process that starts the workers; where that has died already, the worker ends here.
    """
    is_child = multiprocessing.get_start_method(allow_none=True) != "forkserver"
    end_with_parent(parent if is_child else None)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _without_lost_peers
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a SIGTERM kills workers and so loses the last steps
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _without_lost_peers(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an uncaught error, except that of the thread which hands batches over when the main process has died."""
    if threading.current_thread() is threading.main_thread() or not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_when_the_parent_asks() -> None:
    """Exits at a SIGTERM from the main process; ignores those of other processes."""
    parent = multiprocessing.parent_process()  # os.getppid() may be the fork server
    pid = parent.pid if parent else os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != pid:
        continue
    os._exit(0)
