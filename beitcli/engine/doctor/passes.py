"""One pass over all images, by several processes, in order and with few images in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.examine import Examined, examine, unreadable
from beitcli.errors import BadImage, DataError
from beitcli.runtime.distributed.parent_death import end_with_parent

_CHUNK = 16  # images of one task
_MOST_OF_A_BLOCK = 2048
_AHEAD = 4  # tasks a process
_MOST_PROCESSES = 16
_WORTH_PROCESSES = 64  # images

_source: Source | None = None  # of a worker process


def examine_all(source: Source, workers: int) -> Iterator[Examined]:
    """Examines all images, in order.

    Args:
        workers: Processes; -1 for one a core, 0 for none beside this one.

    Raises:
        DataError: A process was killed, as by the kernel for its memory.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(_MOST_PROCESSES, cores) if workers < 0 else workers
    if not processes or (workers < 0 and (processes == 1 or len(source) < _WORTH_PROCESSES)):
        for first, last in _chunks(source):
            yield from _examine_chunk(source, first, last)
        return
    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin, (source, os.getpid()))
    pending: deque[Future[list[Examined]]] = deque()
    chunks = _chunks(source)
    try:
        for chunk in chunks:
            pending.append(pool.submit(_task, *chunk))
            if len(pending) >= _AHEAD * processes:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "A process that reads images was killed, as the kernel does when memory ends.", "Give fewer --workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(source: Source) -> Iterator[tuple[int, int]]:
    """Yields (first, behind the last) of tasks; images of one block, which are read together, stay together."""
    blocks = source.blocks()
    ends = np.cumsum(blocks.lengths).tolist() if blocks is not None else [len(source)]
    most, first = (_CHUNK if blocks is None else _MOST_OF_A_BLOCK), 0
    for end in ends:
        while first < end:
            last = min(end, first + most)
            yield first, last
            first = last


def _begin(source: Source, parent: int) -> None:
    """Prepares a worker: signals are the main process's, with which it ends."""
    global _source
    end_with_parent(parent)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _source = source


def _task(first: int, last: int) -> list[Examined]:
    assert _source is not None
    return list(_examine_chunk(_source, first, last))


def _examine_chunk(source: Source, first: int, last: int) -> Iterator[Examined]:
    for index in range(first, last):
        try:
            data = source.read(index)
        except BadImage as error:
            yield unreadable(index, error)
            continue
        yield examine(index, source.path(index), data, source.intensity)
