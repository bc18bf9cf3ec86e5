"""Distributed evaluation: whole batches are sharded over ranks, so that metrics do not depend on the world size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from beitcli.data.loading.batch_datasets import Masking, Transform
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.loading.kept_batches import KeptBatches
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.trainer.prefetch import on_device
from beitcli.errors import BeitError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import DistributedContext

Answer = TypeVar("Answer")


def synchronized_batches(
    batches: Iterator[Answer], images: int, batch_size: int, world: DistributedContext, check_stop: Callable[[], None]
) -> Iterator[Answer]:
    """Yields this rank's batches. Before each round of one batch per rank, all ranks call `check_stop`.

    Args:
        batches: From `ordered_batches` with this rank's share, or `on_device` of these.
        images: Number of images of all ranks together.

    Raises:
        BeitError: That of a rank without its batch, on all ranks, so that none waits for it in a later collective.
    """
    for _ in range(-(-images // (batch_size * world.size))):
        check_stop()
        batch, failure = next_or_error(batches)
        if world.all_reduce_max(failure is not None):
            world.raise_if_any_failed(failure)
        if batch is not None:
            yield batch


def next_or_error(items: Iterator[Answer]) -> tuple[Answer | None, BeitError | None]:
    """Returns the next item, None at the end, or the error for which there is none, to be raised on all ranks."""
    try:
        return next(items, None), None
    except BeitError as error:
        return None, error


@dataclass(frozen=True)
class Batching:
    """How a source is divided into batches for evaluation.

    Attributes:
        batch_size: Images per forward pass.
        workers: Number of processes that load images.
        on_event: Receives progress.
        check_stop: See `synchronized_batches`.
        kept: Keeps the batches for later evaluations of the same source, transform and masks; None to load each time.
    """

    compute: Compute
    batch_size: int
    workers: int
    on_event: OnEvent = ignore
    check_stop: Callable[[], None] = lambda: None
    kept: KeptBatches | None = None

    def batches(self, source: Source, transform: Transform, masking: Masking | None = None) -> Iterator[Batch]:
        """This rank's batches, in order, with masks if given; a batch is empty if all of its images are bad."""
        return self._synchronized(self._loaded(source, transform, masking), source)

    def on_device(
        self, source: Source, transform: Transform, masking: Masking | None = None
    ) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
        """`batches`, each with its tensors on the device, as `prefetch.on_device` brings them there.

        On CUDA the next ones are copied from pinned memory while the device computes; those of `kept`, which stay in
        memory, are not pinned.
        """
        pin_memory = self.compute.device.type == "cuda" and self.kept is None
        loaded = self._loaded(source, transform, masking, pin_memory=pin_memory)
        with closing(on_device(loaded, self.compute.device)) as moved:
            yield from self._synchronized(moved, source)

    def _synchronized(self, batches: Iterator[Answer], source: Source) -> Iterator[Answer]:
        return synchronized_batches(batches, len(source), self.batch_size, self.compute.world, self.check_stop)

    def _loaded(
        self, source: Source, transform: Transform, masking: Masking | None, *, pin_memory: bool = False
    ) -> Iterator[Batch]:
        world = self.compute.world
        load = partial(
            ordered_batches,
            source,
            transform,
            batch_size=self.batch_size,
            workers=self.workers,
            masking=masking,
            pin_memory=pin_memory,
            share=(world.rank, world.size),
        )
        if self.kept is None:
            return load()
        mine = len(range(world.rank, -(-len(source) // self.batch_size), world.size))
        return self.kept.batches(self.batch_size, mine, load)


def finish_on_rank_zero(do: Callable[[], Answer], world: DistributedContext) -> Answer:
    """`DistributedContext.run_on_rank_zero` as the end of a command: rank 0 stays until every rank has the answer.

    Raises:
        BeitError: That of rank 0, on all ranks.
    """
    try:
        answer = world.run_on_rank_zero(do)
    except BeitError:
        world.gather(None)
        raise
    world.gather(None)
    return answer
