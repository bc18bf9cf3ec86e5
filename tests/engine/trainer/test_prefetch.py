"""Batches on their way to the device: order, how many are under way, errors in their place, and an end without a hang.

The thread that runs ahead is used on CUDA; here it works for the CPU.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import Batch, training_batches
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.trainer.prefetch import AHEAD, Prefetcher, on_device, to_device
from beitcli.errors import BadImage, DataError

CPU = torch.device("cpu")


class Greys(Source):
    """Image i is all of grey i; those in `bad` cannot be read."""

    def __init__(self, length: int = 24, bad: tuple[int, ...] = ()) -> None:
        self.length, self.bad = length, bad
        self.classes = None

    def __len__(self) -> int:
        return self.length

    def path(self, index: int) -> str:
        return f"greys/{index}.png"

    def read(self, index: int) -> bytes:
        return bytes(self.image(index).tobytes())

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise BadImage(f"number {index} is broken")
        return Image.new("RGB", (12, 12), (index, index, index))

    def label(self, index: int) -> int | None:
        return None


class FineView(CenterTransform):
    """Of a size that makes every batch travel in pieces."""

    bytes_per_image = 400_000_000


def stream(source: Source, workers: int, steps: int = 6, transform: CenterTransform | None = None):
    transform = transform or CenterTransform(size=4)
    part = StreamPart(seed=3, batch_size=4, images_seen=0, steps=steps)
    return training_batches(source, transform, part, workers=workers)


def numbered(count: int) -> list[Batch]:
    return [Batch({"images": torch.full((2, 3), number)}, [number], []) for number in range(count)]


class Counted(Iterator[Batch]):
    """Batches, then perhaps an error; and how many have been taken of them."""

    def __init__(self, batches: list[Batch], error: BaseException | None = None) -> None:
        self.batches, self.error, self.taken = batches, error, 0
        self.closed_in: threading.Thread | None = None

    def __next__(self) -> Batch:
        if self.taken == len(self.batches):
            raise self.error or StopIteration
        self.taken += 1
        return self.batches[self.taken - 1]

    def close(self) -> None:
        self.closed_in = threading.current_thread()


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("transform", [CenterTransform(size=4), FineView(size=4)])
def test_prefetched_batches_are_the_loaders_in_their_order_with_their_bad_images(transform):
    source = Greys(bad=(2, 3, 11))
    expected = list(stream(source, workers=0))
    prefetcher = Prefetcher(stream(source, workers=2, transform=transform), CPU)
    moved = list(prefetcher)
    prefetcher.close()
    assert len(moved) == len(expected) == 6
    assert sum(len(batch.bad) for batch in expected) >= 3
    for mine, batch in zip(moved, expected, strict=True):
        mine.take()
        assert mine.batch.indices == batch.indices
        assert mine.batch.bad == batch.bad
        assert torch.equal(mine.tensors["images"], batch.tensors["images"])
    assert not prefetch_threads()
    assert not active_children()


def test_two_batches_are_taken_ahead_and_never_more():
    source = Counted(numbered(9))
    prefetcher = Prefetcher(source, CPU)
    assert source.taken == 0
    for number in range(9):
        assert next(prefetcher).batch.indices == [number]
        assert source.taken <= number + 1 + AHEAD
    assert next(prefetcher, None) is None
    assert next(prefetcher, None) is None
    assert source.taken == 9
    assert source.closed_in is not threading.current_thread()
    prefetcher.close()


def test_the_thread_runs_ahead_while_nothing_is_asked_for():
    passed = threading.Semaphore(0)

    class Told(Counted):
        def __next__(self) -> Batch:
            batch = super().__next__()
            passed.release()
            return batch

    prefetcher = Prefetcher(Told(numbered(9)), CPU)
    next(prefetcher)
    for _ in range(1 + AHEAD):
        assert passed.acquire(timeout=60)
    prefetcher.close()


@pytest.mark.parametrize("error", [DataError("No image can be read.", "Look."), KeyboardInterrupt(), OSError("disk")])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_an_error_comes_behind_the_batches_before_it_and_again_when_asked_again(before, error):
    prefetcher = Prefetcher(Counted(numbered(before), error), CPU)
    assert [next(prefetcher).batch.indices for _ in range(before)] == [[number] for number in range(before)]
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            next(prefetcher)
        assert caught.value is error
    prefetcher.close()
    assert not prefetch_threads()


def test_a_data_error_of_a_worker_leaves_no_worker_behind_though_it_is_kept():
    source = Greys(8, bad=tuple(range(8)))
    prefetcher = Prefetcher(stream(source, workers=1), CPU)
    with pytest.raises(DataError, match="8 images in a row") as caught:
        list(prefetcher)
    assert caught.value.exit_code == 3
    prefetcher.close()
    assert not active_children()


def test_the_death_of_a_worker_is_told_where_the_thread_waits_for_it():
    prefetcher = Prefetcher(stream(Greys(), workers=1, steps=400), CPU)
    next(prefetcher)
    (worker,) = active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"Loader process 1 of 1 \(pid \d+\) was ended by SIGKILL"):
        for _ in prefetcher:
            pass
    prefetcher.close()
    assert not active_children()


def test_closing_ends_a_thread_that_waits_for_room():
    source = Counted(numbered(100))
    prefetcher = Prefetcher(source, CPU)
    next(prefetcher)
    (thread,) = prefetch_threads()
    prefetcher.close()
    assert not thread.is_alive()
    assert source.closed_in is thread
    assert source.taken <= 1 + AHEAD
    assert next(prefetcher, None) is None


def test_closing_before_the_first_batch_starts_nothing():
    source = Counted(numbered(3))
    Prefetcher(source, CPU).close()
    assert source.taken == 0
    assert source.closed_in is threading.current_thread()


class Stuck(Greys):
    """Those in `bad` are never read to their end."""

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            threading.Event().wait(3600)
        return Image.new("RGB", (12, 12))


def test_closing_ends_workers_that_hang_and_a_thread_that_waits_for_them():
    order = [index for batch in stream(Greys(), workers=0) for index in batch.indices]
    prefetcher = Prefetcher(stream(Stuck(bad=(order[4],)), workers=1), CPU)
    assert next(prefetcher).batch.indices == order[:4]
    prefetcher.close()  # would take an hour
    assert not prefetch_threads()
    assert not active_children()


def test_closing_on_a_cpu_ends_the_workers():
    batches = on_device(stream(Greys(), workers=1), CPU)
    next(batches)
    assert len(active_children()) == 1
    batches.close()
    assert not active_children()


def test_on_a_cpu_nothing_is_read_ahead_and_no_thread_is_started():
    source = Counted(numbered(5))
    for number, (batch, tensors) in enumerate(on_device(source, CPU)):
        assert batch.indices == [number]
        assert tensors["images"] is batch.tensors["images"]
        assert source.taken == number + 1
        assert not prefetch_threads()


def test_to_device_copies_nothing_on_a_cpu():
    tensor = torch.from_numpy(np.arange(3.0))
    assert to_device(tensor, CPU) is tensor
