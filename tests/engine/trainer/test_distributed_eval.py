"""Batches of an evaluation over several processes: an error of one is raised in all."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from beitcli.data.loading.batches import Batch
from beitcli.engine.trainer.distributed_eval import synchronized_batches
from beitcli.errors import DataError
from beitcli.runtime.distributed.world import join, shutdown
from tests.helpers.processes import in_group


@pytest.mark.parametrize("mine", [0, 1])
def test_an_error_of_one_rank_is_raised_on_all_before_the_next_collective(mine: int) -> None:
    def work(rank: int) -> int:
        world = join(torch.device("cpu"), 2, 30)

        def batches() -> Iterator[Batch]:
            yield Batch({}, [rank], [])
            if rank == mine:
                raise DataError("A loader worker was killed.", "Give it memory.")
            yield Batch({}, [2 + rank], [])

        taken = []
        try:
            for batch in synchronized_batches(batches(), 4, 1, world, lambda: None):
                taken += batch.indices
        except DataError as error:
            print(taken, error.message, world.gather(rank), file=sys.stderr)
        shutdown()
        return 0

    ended = in_group(2, work)
    assert [each.code for each in ended] == [0, 0], [each.err for each in ended]
    said = f"Rank {mine} of 2: A loader worker was killed. [0, 1]"
    assert [each.err.strip().splitlines()[-1] for each in ended] == [f"[{rank}] {said}" for rank in range(2)]
