"""Batches of an evaluation over several processes: an error of one is raised in all."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from beitcli.data.loading.batches import Batch
from beitcli.data.loading.kept_batches import KeptBatches
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CenterTransform
from beitcli.engine.trainer import distributed_eval
from beitcli.engine.trainer.distributed_eval import Batching, synchronized_batches
from beitcli.engine.trainer.prefetch import Prefetcher
from beitcli.errors import DataError, Stopped
from beitcli.runtime.compute.device import Compute
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


CPU = torch.device("cpu")
VIEW = CenterTransform(size=16)


def read_ahead(
    batches: Iterator[Batch], device: torch.device
) -> Generator[tuple[Batch, dict[str, torch.Tensor]], None, None]:
    """`on_device` as it is on CUDA with workers, here for the CPU."""
    with closing(Prefetcher(batches, device)) as moved:
        for each in moved:
            yield each.batch, each.take()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_ahead", [False, True])
def test_batches_on_the_device_are_those_of_the_loader(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int, is_ahead: bool
) -> None:
    source = open_data([str(labelled_folder)], labelled=True)
    expected = list(Batching(Compute(CPU, "fp32"), 5, 0).batches(source, VIEW))
    if is_ahead:
        monkeypatch.setattr(distributed_eval, "on_device", read_ahead)
    found = list(Batching(Compute(CPU, "fp32"), 5, workers).on_device(source, VIEW))
    assert [batch.indices for batch, _ in found] == [batch.indices for batch in expected]
    for (batch, tensors), other in zip(found, expected, strict=True):
        assert tensors.keys() == batch.tensors.keys() == {"images", "labels"}
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in tensors.items())
        assert all(tensor is batch.tensors[name] for name, tensor in tensors.items())  # a CPU copies nothing
    assert not active_children()


def test_kept_batches_are_on_the_device_again_without_loading(labelled_folder: Path) -> None:
    batching = Batching(Compute(CPU, "fp32"), 5, 0, kept=KeptBatches())
    source = open_data([str(labelled_folder)], labelled=True)
    first, second = (list(batching.on_device(source, VIEW)) for _ in range(2))
    assert len(first) == 5
    assert all(before[0] is after[0] for before, after in zip(first, second, strict=True))


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_stop_between_batches_ends_the_workers(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch, is_ahead: bool
) -> None:
    if is_ahead:
        monkeypatch.setattr(distributed_eval, "on_device", read_ahead)
    rounds: list[int] = []

    def check_stop() -> None:
        rounds.append(len(active_children()))
        if len(rounds) == 3:
            raise Stopped("It is to stop.", "Go on with --resume.")

    batching = Batching(Compute(CPU, "fp32"), 5, 2, check_stop=check_stop)
    batches = batching.on_device(open_data([str(labelled_folder)]), VIEW)
    with pytest.raises(Stopped):
        list(batches)
    assert rounds == [0, 2, 2]
    assert not active_children()
