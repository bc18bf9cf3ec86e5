"""Data loaders: an endless keyed stream of batches for training, one pass in order for evaluation.

Workers prefetch up to 2 GB; larger batches are transferred in pieces and joined here. The first call of `next` starts
the workers. The kernel kills them when the thread of that call ends, so it must live as long as the loader; other
threads may take the later batches.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from beitcli.data.loading.batch import Batch as Batch
from beitcli.data.loading.batch import joined
from beitcli.data.loading.batch_datasets import (
    BatchDataset,
    Masking,
    OrderedPieces,
    Share,
    StreamPart,
    TrainingPieces,
    Transform,
)
from beitcli.data.loading.read_ahead import read_ahead, require_open_files
from beitcli.data.loading.worker_monitor import (
    WorkerMonitor,
    death_at_start,
    prepare_worker,
    starting_workers,
    terminate,
)
from beitcli.data.sources.base import Source
from beitcli.data.sources.remote.prefetch import READ_AHEAD
from beitcli.errors import DataError

_POLL_SECONDS = 0.5  # how often a wait for workers checks for an interrupt or a dead worker
_TIMED_OUT = "DataLoader timed out"  # torch's message, after which its loader can be used again
_GRACE_SECONDS = 2.0  # for interrupted workers to finish the current item


def training_batches(
    source: Source,
    transform: Transform,
    part: StreamPart,
    *,
    workers: int,
    masking: Masking | None = None,
    pin_memory: bool = False,
    share: Share = (0, 1),
) -> Batches:
    """Loads a part of the endless stream.

    Args:
        pin_memory: Returns batches in pinned memory; the thread that calls `next` copies them.
        share: (rank, world size): this rank loads `rank_indices(batch_size, rank, size)` of every batch.
    """
    return Batches(TrainingPieces(source, transform, part, masking, share), workers, pin_memory)


def ordered_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    masking: Masking | None = None,
    pin_memory: bool = False,
    share: Share = (0, 1),
) -> Batches:
    """Loads every readable image once, in order; batches with bad images are smaller, perhaps empty.

    Args:
        share: (rank, world size): this rank loads batches rank, rank + size, ... of those of a single process.
    """
    return Batches(OrderedPieces(source, transform, masking, batch_size, share), workers, pin_memory)


class Batches(Iterator[Batch]):
    """Iterator over the batches of a loader.

    Attributes:
        workers: Number of worker processes; with 0, the thread that calls `next` reads.
    """

    def __init__(self, dataset: BatchDataset, workers: int, pin_memory: bool) -> None:
        self.workers = min(workers, len(dataset))
        self._interrupted = threading.Event()
        self._batches = _iterate(dataset, self.workers, pin_memory, self._interrupted)

    def __next__(self) -> Batch:
        return next(self._batches)

    def interrupt(self) -> None:
        """Ends the iteration, from any thread: a thread in `next` gets StopIteration within 0.5 s."""
        self._interrupted.set()

    def close(self) -> None:
        """Stops the workers; must not be called while another thread is in `next`."""
        self._batches.close()


def _iterate(
    dataset: BatchDataset, workers: int, pin_memory: bool, interrupted: threading.Event
) -> Generator[Batch, None, None]:
    prefetch = 2
    if workers:
        dataset.watch = WorkerMonitor(workers)
        prefetch, dataset.pieces = read_ahead(
            dataset.batch_size, getattr(dataset.transform, "bytes_per_image", 0), workers
        )
    pieces, parts = dataset.pieces, []
    try:
        for item in _items(dataset, workers, prefetch, interrupted):
            if isinstance(item, DataError):
                raise item
            parts.append(item)
            if len(parts) == pieces:
                yield joined(parts, pin_memory) if pin_memory or pieces > 1 else parts[0]
                parts = []
        return
    except (RuntimeError, OSError, EOFError) as error:  # a worker has died
        death = dataset.watch.death(dataset.source) if dataset.watch is not None else None
        death = death or death_at_start(error)
        if death is None:
            raise
    raise death  # outside `except`: torch's error as context would keep the other workers alive


def _items(
    dataset: BatchDataset, workers: int, prefetch: int, interrupted: threading.Event
) -> Generator[Batch | DataError, None, None]:
    """Yields the items of torch's loader until it is interrupted."""
    iterator = _started(dataset, workers, prefetch)
    try:
        while not interrupted.is_set():
            try:
                item = next(iterator, None)
            except RuntimeError as error:
                if not str(error).startswith(_TIMED_OUT):
                    raise
                continue
            if item is None:
                return
            yield item
    finally:
        hurry = threading.Timer(_GRACE_SECONDS, terminate, [dataset.watch.processes if dataset.watch else []])
        if interrupted.is_set():
            hurry.start()
        del iterator  # stops the workers; an error's traceback would keep the variable, and so them, alive
        hurry.cancel()


def _started(dataset: BatchDataset, workers: int, prefetch: int) -> Iterator[Batch | DataError]:
    # Items are batches already. All randomness is keyed, so the loader's base seed is not used; it gets a generator of
    # its own, because drawing it would advance torch's global generator.
    options: dict[str, Any] = {"batch_size": None, "collate_fn": _whole, "generator": torch.Generator().manual_seed(0)}
    if workers:
        require_open_files(workers, prefetch)
        READ_AHEAD.finish()
        options |= {
            "prefetch_factor": prefetch,
            "worker_init_fn": partial(prepare_worker, parent=os.getpid()),
            "timeout": _POLL_SECONDS,
        }
    with warnings.catch_warnings(), starting_workers():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
        iterator = iter(DataLoader(dataset, num_workers=workers, **options))
    if dataset.watch is not None:
        dataset.watch.processes = list(getattr(iterator, "_workers", ()))
    return iterator


def _whole(batch: Batch | DataError) -> Batch | DataError:
    return batch
