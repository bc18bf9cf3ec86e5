"""Datasets whose items are batches, or pieces of them: the endless keyed stream of training, and one pass in order.

Position p of the stream is image `order(p)`; step s with batch size B takes positions s * B .. s * B + B - 1. So a run
resumes from one integer, with any number of workers. With R repeats, position p is image `order(p // R)`, transformed
with the random numbers of epoch e * R + p % R. An unreadable image is replaced by the next readable one in the epoch's
order, the same in every run, and reported with its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from beitcli.data.loading.batch import Batch
from beitcli.data.loading.sampler import WindowedPermutation, rank_indices, training_order
from beitcli.data.loading.worker_monitor import WorkerMonitor
from beitcli.data.sources.base import Source
from beitcli.errors import BadImage, DataError

# Takes an image, or its (H, W, 3) uint8 pixels if the transform has `wants_pixels`, or pixels and labels (a label map,
# boxes) if it has `wants_labels`; then the epoch and the global index of the image.
Transform = Callable[[Any, int, int], dict[str, np.ndarray]]
Masking = Callable[[int, int], np.ndarray]
Share = tuple[int, int]  # rank and world size
_SUBSTITUTES = 64


@dataclass(frozen=True, kw_only=True)
class StreamPart:
    """A part of the endless stream of training images.

    Attributes:
        seed: Seed of the order.
        batch_size: Global batch size, over all ranks.
        images_seen: Position at which the part starts.
        steps: Number of batches.
        repeats: Consecutive samples of each image, each with its own random transform.
    """

    seed: int
    batch_size: int
    images_seen: int
    steps: int
    repeats: int = 1


class BatchDataset(ABC, Dataset["Batch | DataError"]):
    """Map-style dataset whose items are the pieces of batches; a DataError is returned, as torch would change it."""

    pieces = 1  # per batch
    watch: WorkerMonitor | None = None  # None without workers

    def __init__(self, source: Source, transform: Transform, masking: Masking | None, batch_size: int) -> None:
        self.source, self.transform, self.masking, self.batch_size = source, transform, masking, batch_size
        self.read_image = _reader(source, transform)

    def __len__(self) -> int:
        return self.batches() * self.pieces

    def __getitem__(self, item: int) -> Batch | DataError:
        number, piece = divmod(item, self.pieces)
        places = self.places(number)
        begin, end = (len(places) * cut // self.pieces for cut in (piece, piece + 1))
        try:
            return self.read(places[begin:end])
        except DataError as error:
            return error
        finally:
            if self.watch is not None:
                self.watch.rests()

    @abstractmethod
    def batches(self) -> int:
        """Returns the number of batches."""

    @abstractmethod
    def places(self, number: int) -> np.ndarray:
        """Returns (n,) positions of the images of batch `number`, in the stream or the source."""

    @abstractmethod
    def read(self, places: np.ndarray) -> Batch:
        """Returns the images at these positions."""

    def views(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        if self.watch is not None:
            self.watch.begins(index)
        key = self.source.global_index(index)
        try:
            arrays = self.transform(self.read_image(index), epoch, key)
        except MemoryError:
            raise BadImage("too large for the memory of this machine") from None
        if self.masking is not None:
            arrays["mask"] = self.masking(epoch, key).reshape(-1)
        label = self.source.label(index)
        if label is not None:
            arrays["labels"] = np.int64(label)  # type: ignore[assignment]
        vector = self.source.label_vector(index)
        if vector is not None:
            arrays["label_vectors"] = vector
        return arrays

    def collate(self, items: list[dict[str, np.ndarray]], indices: list[int], bad: list[tuple[int, str, str]]) -> Batch:
        names = dict.fromkeys(name for item in items for name in item)
        ragged = getattr(self.transform, "ragged", ())
        stacked = {}
        for name in names:
            arrays = [item[name] for item in items if name in item]
            stacked[name] = torch.from_numpy(np.concatenate(arrays) if name in ragged else np.stack(arrays))
        return Batch(stacked, indices, bad)


def _reader(source: Source, transform: Transform) -> Callable[[int], Any]:
    """Returns the method of the source that reads the input of the transform."""
    if getattr(transform, "wants_labels", False):
        return source.pixels_and_labels  # type: ignore[attr-defined]
    return source.pixels if getattr(transform, "wants_pixels", False) else source.image


class TrainingPieces(BatchDataset):
    def __init__(
        self, source: Source, transform: Transform, part: StreamPart, masking: Masking | None, share: Share
    ) -> None:
        super().__init__(source, transform, masking, part.batch_size)
        self.part, self.order = part, training_order(source, part.seed)
        self.mine = rank_indices(part.batch_size, *share)
        blocks = source.blocks()
        self.ahead = 0
        if blocks is not None and blocks.are_remote:
            self.ahead = self.order.window if isinstance(self.order, WindowedPermutation) else part.batch_size
        self.has_begun = False

    def batches(self) -> int:
        return self.part.steps

    def places(self, number: int) -> np.ndarray:
        return self.part.images_seen + number * self.batch_size + self.mine

    def read(self, places: np.ndarray) -> Batch:
        positions, repeats = np.divmod(places, self.part.repeats)
        epochs, indices = self.order.indices(positions)
        if self.ahead:
            self._prefetch(positions, indices)
        items, taken = [], []
        bad: list[tuple[int, str, str]] = []
        drawn = zip(positions.tolist(), epochs.tolist(), indices.tolist(), repeats.tolist(), strict=True)
        for position, epoch, index, repeat in drawn:
            item, used = self._readable(position, epoch, index, repeat, bad)
            items.append(item)
            taken.append(used)
        return self.collate(items, taken, bad)

    def _prefetch(self, positions: np.ndarray, indices: np.ndarray) -> None:
        """Prefetches the images one window (or one batch) ahead; at the first call also those of this batch."""
        if not self.has_begun:
            self.source.prefetch(indices)
            self.has_begun = True
        later = positions + self.ahead
        later = later[later < (self.part.images_seen + self.part.steps * self.batch_size) // self.part.repeats]
        self.source.prefetch(self.order.indices(later)[1])

    def _readable(
        self, position: int, epoch: int, index: int, repeat: int, bad: list[tuple[int, str, str]]
    ) -> tuple[dict[str, np.ndarray], int]:
        length = len(self.source)
        for attempt in range(min(length, _SUBSTITUTES)):
            if attempt:
                beside = epoch * length + (position + attempt) % length
                index = int(self.order.indices(np.array([beside]))[1][0])
            try:
                return self.views(epoch * self.part.repeats + repeat, index), index
            except BadImage as error:
                bad.append((index, self.source.path(index), error.message))
        raise DataError(
            f"{min(length, _SUBSTITUTES)} images in a row cannot be read, the last: {bad[-1][1]}: {bad[-1][2]}.",
            "`beit doctor DATA` lists what cannot be read, and why.",
        )


class OrderedPieces(BatchDataset):
    def __init__(
        self, source: Source, transform: Transform, masking: Masking | None, batch_size: int, share: Share
    ) -> None:
        super().__init__(source, transform, masking, batch_size)
        self.rank, self.size = share

    def batches(self) -> int:
        return len(range(self.rank, -(-len(self.source) // self.batch_size), self.size))

    def places(self, number: int) -> np.ndarray:
        first = (number * self.size + self.rank) * self.batch_size
        return np.arange(first, min(len(self.source), first + self.batch_size))

    def read(self, places: np.ndarray) -> Batch:
        beyond = places + self.batch_size * self.size
        self.source.prefetch(np.concatenate([places, beyond[beyond < len(self.source)]]))
        items, taken, bad = [], [], []
        for index in places.tolist():
            try:
                items.append(self.views(0, index))
                taken.append(index)
            except BadImage as error:
                bad.append((index, self.source.path(index), error.message))
        return self.collate(items, taken, bad)
