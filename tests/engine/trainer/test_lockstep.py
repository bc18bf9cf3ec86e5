"""One process agrees with nobody: its batch is fetched at the step's head, and a signal stops it right there."""

from __future__ import annotations

import signal

import pytest
import torch

from beitcli.data.loading.batches import Batch
from beitcli.engine.trainer.lockstep import Lockstep
from beitcli.errors import DataError
from beitcli.runtime.distributed.world import SINGLE_PROCESS
from beitcli.runtime.signals import StopRequest


class Feed:
    """Batches numbered from 0, of which the third cannot be had."""

    def __init__(self) -> None:
        self.fetched = 0

    def __call__(self) -> tuple[Batch, dict[str, torch.Tensor]]:
        self.fetched += 1
        if self.fetched == 3:
            raise DataError("no third", "")
        return Batch({}, [self.fetched - 1], []), {}


def test_a_batch_is_fetched_no_earlier_than_its_step() -> None:
    feed = Feed()
    lockstep = Lockstep(feed, StopRequest(), SINGLE_PROCESS)
    for step in range(2):
        assert feed.fetched == step
        stopping, (batch, _) = lockstep.enter(is_last=False)
        assert (stopping, batch.indices) == (False, [step])
    with pytest.raises(DataError, match="no third"):
        lockstep.enter(is_last=False)


def test_a_signal_stops_at_the_next_head_with_its_batch_in_hand() -> None:
    stop, feed = StopRequest(), Feed()
    lockstep = Lockstep(feed, stop, SINGLE_PROCESS)
    assert not lockstep.enter(is_last=False)[0]
    stop.received = signal.SIGTERM
    stopping, (batch, _) = lockstep.enter(is_last=False)
    assert (stopping, batch.indices) == (True, [1])
    lockstep.leave()
    assert feed.fetched == 2


def test_what_went_wrong_elsewhere_is_raised_at_the_next_head() -> None:
    lockstep = Lockstep(Feed(), StopRequest(), SINGLE_PROCESS)
    lockstep.enter(is_last=False)
    lockstep.pending_error = DataError("before", "")
    with pytest.raises(DataError, match="before"):
        lockstep.enter(is_last=True)
