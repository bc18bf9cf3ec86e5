"""A measurement shared out over processes by whole batches, so that no figure depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from beitcli.data.loading.batches import Batch
from beitcli.errors import BeitError
from beitcli.runtime.distributed.world import DistributedContext

Answer = TypeVar("Answer")


def synchronized_batches(
    batches: Iterator[Batch], images: int, batch_size: int, world: DistributedContext, check_stop: Callable[[], None]
) -> Iterator[Batch]:
    """This process's batches. Before each round, in which every process takes one, all call `poll`.

    Args:
        batches: From `ordered_batches` with this process's share.
        images: Of the whole measurement.
    """
    for _ in range(-(-images // (batch_size * world.size))):
        check_stop()
        batch = next(batches, None)
        if batch is not None:
            yield batch


def measured_by_the_first(do: Callable[[], Answer], world: DistributedContext) -> Answer:
    """`DistributedContext.run_on_rank_zero` as the last act of a command: rank 0 stays until every rank has the answer.

    Raises:
        BeitError: The first process's, in all of them.
    """
    try:
        answer = world.run_on_rank_zero(do)
    except BeitError:
        world.gather(None)
        raise
    world.gather(None)
    return answer
