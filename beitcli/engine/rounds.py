"""A measurement shared out over processes by whole batches, so that no figure depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from beitcli.data.loader import Batch
from beitcli.runtime.distributed import World


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
