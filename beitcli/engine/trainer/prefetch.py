"""Prefetching: batches are copied to the device while it computes the previous steps.

On CUDA one background thread takes batches from the loader, joins their pieces in pinned memory and starts their copy
on a separate stream. The training thread only makes its stream wait for the copy of the batch that it takes. No part of
this waits for the device.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch

from beitcli.data.loading.batches import Batch

AHEAD = 2  # batches taken from the loader, but not yet by training


def on_device(
    batches: Iterator[Batch], device: torch.device
) -> Generator[tuple[Batch, dict[str, torch.Tensor]], None, None]:
    """Like `prefetch_to_device`, but yields each batch with its tensors, for which the current stream waits."""
    with closing(prefetch_to_device(batches, device)) as under_way:
        for moved in under_way:
            yield moved.batch, moved.take()


def prefetch_to_device(batches: Iterator[Batch], device: torch.device) -> Generator[DeviceBatch, None, None]:
    """Yields batches whose copy to the device has started; `close` ends the loader's workers and the thread.

    Without CUDA a batch is read on demand, by the calling thread. On CUDA this is also done if the loader has no
    workers, as reading images uses global random generators and open files of the process; the copy then still overlaps
    with the previous step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield DeviceBatch(batch, batch.to(device))
        return
    moved = Prefetcher(batches, device) if getattr(batches, "workers", 0) else _MovedHere(batches, device)
    with closing(moved):
        yield from moved


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a small CPU tensor to the device without waiting; on CUDA this requires pinned memory."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # the allocator keeps the pinned copy until it is done


@dataclass(frozen=True)
class DeviceBatch:
    """A batch whose copy to the device has been started.

    Attributes:
        ready: CUDA event recorded after the copy; None if there is nothing to wait for.
    """

    batch: Batch
    tensors: dict[str, torch.Tensor]
    ready: torch.cuda.Event | None = None

    def take(self) -> dict[str, torch.Tensor]:
        """Returns the tensors; the current stream, not the host, waits for their copy."""
        if self.ready is not None and self.tensors:
            current = torch.cuda.current_stream(next(iter(self.tensors.values())).device)
            current.wait_event(self.ready)
            for tensor in self.tensors.values():
                tensor.record_stream(current)  # its memory is not reused before the step is done
        return self.tensors


class _Copier:
    """Starts the copy of a batch; on CUDA on a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> DeviceBatch:
        if self.side is None:
            return DeviceBatch(batch, batch.to(self.device))
        with torch.cuda.stream(self.side):
            tensors = batch.to(self.side.device)
            ready = torch.cuda.Event()
            ready.record(self.side)
        return DeviceBatch(batch, tensors, ready)


class _MovedHere(Iterator[DeviceBatch]):
    """Batches that are read on demand, in the calling thread."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._copy = batches, _Copier(device)

    def __next__(self) -> DeviceBatch:
        return self._copy(next(self._batches))

    def close(self) -> None:
        _close(self._batches)


class Prefetcher(Iterator[DeviceBatch]):
    """Batches that a background thread reads and starts to copy, at most `AHEAD` of them in advance.

    An error of the loader is raised in place of the batch where it occurred. Signals are handled by the main thread.
    The calling thread reads the first batch, so that the loader starts its workers from that thread.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._copy = batches, _Copier(device)
        self._room = threading.Semaphore(AHEAD)
        self._ready: queue.SimpleQueue[DeviceBatch | BaseException] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __next__(self) -> DeviceBatch:
        if self._stopped.is_set():
            raise StopIteration
        if self._thread is None:
            first = self._copy(next(self._batches))
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()
            return first
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # raised again by the next call
            raise item
        self._room.release()
        return item

    def close(self) -> None:
        """Ends the thread and the loader's workers, even while the thread is waiting."""
        self._stopped.set()
        interrupt = getattr(self._batches, "interrupt", None)
        if interrupt is not None:
            interrupt()
        self._room.release()
        if self._thread is None:
            _close(self._batches)
        else:
            self._thread.join()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            if self._copy.side is not None:
                torch.set_num_threads(1)  # this thread's, as in torch's own pinning thread: workers need the cores
                torch.cuda.set_device(self._copy.side.device)  # the current device is per thread, at first GPU 0
            while True:
                self._room.acquire()
                batch = None if self._stopped.is_set() else next(self._batches, None)
                if batch is None:
                    break
                self._ready.put(self._copy(batch))
                del batch  # frees its memory before the wait for the next one
        except BaseException as error:  # raised by `__next__`
            end = error
        finally:
            try:
                _close(self._batches)
            finally:
                self._ready.put(end)


def _close(batches: Iterator[Batch]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
