"""Copies of a run's tensors that training does not change, and the thread that writes them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from beitcli.errors import StorageError
from beitcli.runtime.storage.async_writer import CheckpointWriter, SnapshotTaker


def test_a_snapshot_holds_the_values_of_before_by_group_and_name():
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    strided, step = torch.arange(12).reshape(3, 4).t(), torch.tensor(7)
    taken = SnapshotTaker().take(weights={"a": parameter, "b": strided}, moments={"a": step}, extra={})
    expected = {"a": parameter.detach().clone(), "b": strided.clone()}
    with torch.no_grad():
        parameter.zero_()
    strided.zero_()
    step += 1
    taken.wait()
    assert list(taken.groups) == ["weights", "moments", "extra"]
    assert taken.groups["weights"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(taken.groups["weights"][name], tensor)
        assert not taken.groups["weights"][name].requires_grad
    assert taken.groups["moments"]["a"].item() == 7
    assert taken.groups["extra"] == {}


@pytest.mark.parametrize("keep", [True, False])
def test_a_snapshot_in_turn_is_of_what_each_tensor_becomes_and_all_ranks_take_part(keep: bool):
    parts = {"a": torch.arange(3.0), "b": torch.nn.Parameter(torch.ones(2))}
    asked = []

    def whole(part: torch.Tensor) -> torch.Tensor:
        assert not part.requires_grad
        asked.append(len(part))
        return torch.cat((part, part)) if len(part) == 3 else part

    taken = SnapshotTaker().take_in_turn(whole, keep=keep, weights=parts, moments={"a/step": torch.ones(1)}, extra={})
    assert asked == [3, 2, 1]
    if taken is None:
        assert not keep
        return
    taken.wait()
    with torch.no_grad():
        parts["b"] += 1
    assert {name: tensor.tolist() for name, tensor in taken.groups["weights"].items()} == {
        "a": [0, 1, 2, 0, 1, 2],
        "b": [1, 1],
    }
    assert (taken.groups["moments"]["a/step"].tolist(), taken.groups["extra"]) == ([1], {})


def test_a_later_snapshot_on_a_cpu_leaves_the_former_one_alone():
    taker, tensor = SnapshotTaker(), torch.zeros(3)
    first = taker.take(weights={"a": tensor})
    tensor += 1
    second = taker.take(weights={"a": tensor})
    assert first.groups["weights"]["a"].tolist() == [0] * 3
    assert second.groups["weights"]["a"].tolist() == [1] * 3


def test_the_writer_writes_beside_the_training_and_tells_once():
    writer, go_on, by = CheckpointWriter(), threading.Event(), []

    def write() -> Path:
        assert go_on.wait(60)
        by.append(threading.current_thread())
        return Path("step-0000003")

    assert writer.finished() is None
    writer.submit(write, 3)
    assert writer.finished() is None
    go_on.set()
    written = writer.wait()
    assert written is not None
    assert (written.path, written.step) == (Path("step-0000003"), 3)
    assert by != [threading.current_thread()]
    assert writer.wait() is None


def test_an_error_of_the_writer_is_raised_where_it_is_waited_for_and_once():
    def write() -> Path:
        raise StorageError("The disk is full.", "Free space.")

    writer = CheckpointWriter()
    writer.submit(write, 3)
    with pytest.raises(StorageError, match="The disk is full"):
        writer.wait()
    assert writer.wait() is None
