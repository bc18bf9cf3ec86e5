"""A measurement shared out over processes by whole batches, so that no figure depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from beitcli.data.loading.batches import Batch, View, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, ignore
from beitcli.errors import BeitError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import World

Answer = TypeVar("Answer")


def in_rounds(
    batches: Iterator[Batch], images: int, batch_size: int, world: World, poll: Callable[[], None]
) -> Iterator[Batch]:
    """This process's batches. Before each round, in which every process takes one, all call `poll`.

    Args:
        batches: From `ordered_batches` with this process's share.
        images: Of the whole measurement.
    """
    for _ in range(-(-images // (batch_size * world.size))):
        poll()
        batch = next(batches, None)
        if batch is not None:
            yield batch


@dataclass(frozen=True)
class Batching:
    """How a model goes through a source.

    Attributes:
        batch_size: Images of one forward pass.
        workers: Processes that load images.
        on_event: Hears of progress.
        poll: See `in_rounds`.
    """

    compute: Compute
    batch_size: int
    workers: int
    on_event: OnEvent = ignore
    poll: Callable[[], None] = lambda: None

    def batches(self, source: Source, view: View) -> Iterator[Batch]:
        """This process's, in order; one is empty where all of its images are bad."""
        world = self.compute.world
        share = (world.rank, world.size)
        batches = ordered_batches(source, view, batch_size=self.batch_size, workers=self.workers, share=share)
        return in_rounds(batches, len(source), self.batch_size, world, self.poll)


def measured_by_the_first(do: Callable[[], Answer], world: World) -> Answer:
    """`World.first` for what a command ends with: the first process, which holds the answer, stays until all have it.

    Raises:
        BeitError: The first process's, in all of them.
    """
    try:
        answer = world.first(do)
    except BeitError:
        world.gather(None)
        raise
    world.gather(None)
    return answer
