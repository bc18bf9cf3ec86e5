"""Tasks over images in several processes, with their results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from beitcli.errors import DataError
from beitcli.runtime.distributed.cores import available_cores
from beitcli.runtime.distributed.parent_death import end_with_parent

_AHEAD = 4  # tasks a process
_MOST_PROCESSES = 16

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of a worker process
_stopped: Any = None  # of a worker process: one shared byte


def process_count(workers: int) -> int:
    """Returns the number of processes: `workers`, or for -1 one a core, 16 at most."""
    return min(_MOST_PROCESSES, len(available_cores())) if workers < 0 else workers


def run_in_order(
    work: Callable[[Shared, Task], Result], shared: Shared, tasks: Iterable[Task], processes: int
) -> Iterator[Result]:
    """Yields `work(shared, task)` of each task, in order, a few tasks ahead.

    Args:
        work: A function of a module. Where it takes long, it ends early if `is_stopped` says so.
        shared: Goes once to each process; forked ones share its memory.
        processes: 0: the tasks run in this one.

    Raises:
        DataError: A process was killed, as by the kernel for its memory.
    """
    if not processes:
        for task in tasks:
            yield work(shared, task)
        return
    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    stop = context.Value("b", 0, lock=False)
    pool = ProcessPoolExecutor(processes, context, _begin, (work, shared, stop, os.getpid()))
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(_run, task))
            if len(pending) >= _AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "A process that reads images was killed, as the kernel does when memory ends.", "Give fewer --workers."
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


def is_stopped() -> bool:
    """Whether the results are not needed: the job failed, or was stopped."""
    return _stopped is not None and bool(_stopped.value)


def _begin(work: Callable[[Any, Any], Any], shared: Any, stop: Any, parent: int) -> None:
    """Prepares a worker: signals are the main process's, with which it ends."""
    global _work, _stopped
    end_with_parent(parent)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _work, _stopped = lambda task: work(shared, task), stop


def _run(task: Any) -> Any:
    assert _work is not None
    return _work(task)
