"""Batches: an endless keyed stream for training, one pass in order for evaluation.

Position p of the stream is image `order(p)`; step s of a batch of B takes positions s * B .. s * B + B - 1. So a run
goes on from one integer, whatever the number of workers. An image that cannot be read is replaced by the next readable
one of the epoch's order, the same in every run, and reported with its batch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from beitcli.data.order import KeyedOrder
from beitcli.data.sources.base import Source
from beitcli.errors import BadImage, DataError

View = Callable[[Image.Image, int, int], dict[str, np.ndarray]]
Masking = Callable[[int, int], np.ndarray]
_SUBSTITUTES = 64


@dataclass
class Batch:
    """Images and what belongs to them.

    Attributes:
        tensors: What the view gave, stacked: `images` (B, 3, H, W) and more; `mask` (B, N) bool where there is masking;
            `labels` (B,) int64 where the source has classes.
        indices: Of the images in the source.
        bad: (index, path, reason) of images that could not be read.
    """

    tensors: dict[str, torch.Tensor]
    indices: list[int]
    bad: list[tuple[int, str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}

    def pin_memory(self) -> Batch:
        self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return self


class _Images(Dataset["Batch | DataError"]):
    """Reads whole batches, numbered from 0; an error is an item, as torch would make a traceback of its message."""

    def __init__(self, source: Source, view: View, masking: Masking | None) -> None:
        self.source, self.view, self.masking = source, view, masking

    def __getitem__(self, number: int) -> Batch | DataError:
        try:
            return self.batch(number)
        except DataError as error:
            return error

    def batch(self, number: int) -> Batch:
        raise NotImplementedError

    def views(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        key = self.source.origin(index)
        arrays = self.view(self.source.image(index), epoch, key)
        if self.masking is not None:
            arrays["mask"] = self.masking(epoch, key).reshape(-1)
        label = self.source.label(index)
        if label is not None:
            arrays["labels"] = np.int64(label)  # type: ignore[assignment]
        return arrays

    def collate(self, items: list[dict[str, np.ndarray]], indices: list[int], bad: list[tuple[int, str, str]]) -> Batch:
        names = items[0].keys() if items else ()
        stacked = {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in names}
        return Batch(stacked, indices, bad)


class _TrainingImages(_Images):
    def __init__(
        self,
        source: Source,
        view: View,
        masking: Masking | None,
        order: KeyedOrder,
        batch_size: int,
        start: int,
        steps: int,
    ) -> None:
        super().__init__(source, view, masking)
        self.order, self.batch_size, self.start, self.steps = order, batch_size, start, steps

    def __len__(self) -> int:
        return self.steps

    def batch(self, number: int) -> Batch:
        first = self.start + number * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        epochs, indices = self.order.indices(positions)
        items, taken = [], []
        bad: list[tuple[int, str, str]] = []
        for position, epoch, index in zip(positions.tolist(), epochs.tolist(), indices.tolist(), strict=True):
            item, used = self._readable(position, epoch, index, bad)
            items.append(item)
            taken.append(used)
        return self.collate(items, taken, bad)

    def _readable(
        self, position: int, epoch: int, index: int, bad: list[tuple[int, str, str]]
    ) -> tuple[dict[str, np.ndarray], int]:
        length = len(self.source)
        for attempt in range(min(length, _SUBSTITUTES)):
            if attempt:
                beside = epoch * length + (position + attempt) % length
                index = int(self.order.indices(np.array([beside]))[1][0])
            try:
                return self.views(epoch, index), index
            except BadImage as error:
                bad.append((index, self.source.path(index), error.message))
        raise DataError(
            f"{min(length, _SUBSTITUTES)} images in a row cannot be read, the last: {bad[-1][1]}: {bad[-1][2]}.",
            "Check the data; `beit tokenize DATA --stats` lists unreadable images.",
        )


class _OrderedImages(_Images):
    def __init__(self, source: Source, view: View, masking: Masking | None, batch_size: int) -> None:
        super().__init__(source, view, masking)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def batch(self, number: int) -> Batch:
        items, taken, bad = [], [], []
        for index in range(number * self.batch_size, min(len(self.source), (number + 1) * self.batch_size)):
            try:
                items.append(self.views(0, index))
                taken.append(index)
            except BadImage as error:
                bad.append((index, self.source.path(index), error.message))
        return self.collate(items, taken, bad)


def training_batches(
    source: Source,
    view: View,
    *,
    seed: int,
    batch_size: int,
    images_seen: int,
    steps: int,
    workers: int,
    masking: Masking | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """`steps` batches of the endless stream, from the image after `images_seen` on."""
    order = KeyedOrder(len(source), seed)
    images = _TrainingImages(source, view, masking, order, batch_size, images_seen, steps)
    return _iterate(images, workers, pin_memory)


def ordered_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    workers: int,
    masking: Masking | None = None,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every readable image once, in order; a batch may be short, or empty where all of it is bad."""
    return _iterate(_OrderedImages(source, view, masking, batch_size), workers, pin_memory)


def _iterate(images: _Images, workers: int, pin_memory: bool) -> Iterator[Batch]:
    options: dict[str, Any] = {"collate_fn": _whole}  # items are batches already
    if workers:
        options |= {"prefetch_factor": 4, "worker_init_fn": _prepare_worker}
    for batch in DataLoader(images, batch_size=None, num_workers=workers, pin_memory=pin_memory, **options):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _whole(batch: Batch | DataError) -> Batch | DataError:
    return batch


def _prepare_worker(worker: int) -> None:
    """A loader's worker leaves signals to the process that trains: schedulers send them to every process of a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a SIGTERM to a worker ends the run without its last steps
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    """Waits for a SIGTERM of the process that trains; those of others pass by."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
