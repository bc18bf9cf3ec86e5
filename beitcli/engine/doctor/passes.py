"""One pass over all images, by several processes, in order and with few images in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.examine import Examined, examine, unreadable
from beitcli.engine.process_pool import process_count, run_in_order
from beitcli.errors import BadImage

_CHUNK = 16  # images of one task
_MOST_OF_A_BLOCK = 2048
_WORTH_PROCESSES = 64  # images


def examine_all(source: Source, workers: int) -> Iterator[Examined]:
    """Examines all images, in order.

    Args:
        workers: Processes; -1 for one a core, 0 for none beside this one.

    Raises:
        DataError: A process was killed, as by the kernel for its memory.
    """
    processes = process_count(workers)
    if workers < 0 and (processes == 1 or len(source) < _WORTH_PROCESSES):
        processes = 0
    for examined in run_in_order(_examine_chunk, source, _chunks(source), processes):
        yield from examined


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


def _examine_chunk(source: Source, chunk: tuple[int, int]) -> list[Examined]:
    return [_examined(source, index) for index in range(*chunk)]


def _examined(source: Source, index: int) -> Examined:
    try:
        data = source.read(index)
    except BadImage as error:
        return unreadable(index, error)
    return examine(index, source.path(index), data, source.intensity)
