"""The keyed order: a permutation for every length, and the choices that follow it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beitcli.data.loading.sampler import KeyedPermutation, select_limit, split_holdout
from beitcli.data.sources.base import Source
from beitcli.errors import DataError, UsageError


class LabelledNumbers(Source):
    """Images that are never read; only their labels matter here."""

    def __init__(self, labels: list[int] | None, length: int = 0) -> None:
        self.name = "numbers"
        self.labels = labels
        self.length = length if labels is None else len(labels)
        self.classes = None if labels is None else tuple(str(label) for label in range(max(labels) + 1))

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> bytes:
        return str(index).encode()

    def path(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int | None:
        return None if self.labels is None else self.labels[index]


def label_lists() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 6), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 2000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_order_is_a_bijection(length: int, seed: int, epoch: int) -> None:
    permutation = KeyedPermutation(length, seed).permutation(epoch)
    assert np.array_equal(np.sort(permutation), np.arange(length))


def test_order_is_a_bijection_at_powers_of_two_and_beside_them() -> None:
    for length in (1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65_535, 65_536, 65_537):
        assert np.unique(KeyedPermutation(length, 0).permutation(0)).size == length


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 50), seed=st.integers(0, 1000), positions=st.lists(st.integers(0, 400), max_size=20))
def test_order_random_access_equals_sequential(length: int, seed: int, positions: list[int]) -> None:
    order = KeyedPermutation(length, seed)
    sequential = np.concatenate([order.permutation(epoch) for epoch in range(400 // length + 1)])
    epochs, indices = order.indices(np.array(positions, dtype=np.int64))
    assert np.array_equal(epochs, np.array(positions, dtype=np.int64) // length)
    assert np.array_equal(indices, sequential[positions])
    for position in positions[:3]:
        assert order.at(position) == (position // length, sequential[position])


def test_order_changes_with_epoch_seed_and_purpose() -> None:
    orders = [
        KeyedPermutation(1000, 0).permutation(0),
        KeyedPermutation(1000, 0).permutation(1),
        KeyedPermutation(1000, 1).permutation(0),
        KeyedPermutation(1000, 0, "limit").permutation(0),
    ]
    for number, one in enumerate(orders):
        for other in orders[number + 1 :]:
            assert (one == other).mean() < 0.01  # two random permutations agree at one place on average


@pytest.mark.parametrize("length", [3, 6, 10, 40])
def test_order_places_are_uniform(length: int) -> None:
    epochs = 2000
    order = KeyedPermutation(length, 5)
    counts = np.zeros((length, length))  # place by image
    places = np.arange(length)
    for epoch in range(epochs):
        counts[places, order.permutation(epoch)] += 1
    expected = epochs / length
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_order_neighbours_are_uncorrelated() -> None:
    permutation = KeyedPermutation(50_000, 0).permutation(0)
    correlation = np.corrcoef(permutation[:-1], permutation[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(50_000)
    assert abs(np.corrcoef(permutation, np.arange(50_000))[0, 1]) < 4 / np.sqrt(50_000)


def test_order_is_the_same_on_every_machine() -> None:
    assert KeyedPermutation(10, 0).permutation(0).tolist() == [5, 8, 7, 1, 3, 4, 6, 2, 9, 0]


def test_order_refuses_no_images() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KeyedPermutation(0, 0)


@settings(max_examples=80, deadline=None)
@given(labels=label_lists(), limit=st.integers(1, 70), seed=st.integers(0, 100))
def test_limit_is_balanced_and_in_keyed_order(labels: list[int], limit: int, seed: int) -> None:
    source = LabelledNumbers(labels)
    chosen = select_limit(source, limit, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(limit, len(labels))
    available = np.bincount(labels)
    taken = np.bincount(np.array(labels)[chosen], minlength=len(available))
    most = taken.max()
    assert all(taken[label] >= min(available[label], most - 1) for label in range(len(available)))
    place = np.argsort(KeyedPermutation(len(labels), seed, "limit").permutation(0))
    assert np.all(np.diff(place[chosen]) > 0)


def test_limit_smaller_is_part_of_larger() -> None:
    source = LabelledNumbers([index % 7 for index in range(100)])
    assert set(select_limit(source, 20, 3)) < set(select_limit(source, 21, 3))


def test_limit_without_labels_is_the_start_of_the_order() -> None:
    source = LabelledNumbers(None, length=50)
    assert np.array_equal(select_limit(source, 8, 2), KeyedPermutation(50, 2, "limit").permutation(0)[:8])
    assert np.array_equal(np.sort(select_limit(source, 80, 2)), np.arange(50))


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit 0"):
        select_limit(LabelledNumbers(None, length=5), 0, 0)


@settings(max_examples=80, deadline=None)
@given(labels=label_lists(), share=st.floats(0, 0.99), seed=st.integers(0, 100))
def test_holdout_is_disjoint_and_whole(labels: list[int], share: float, seed: int) -> None:
    count = int(share * len(labels))
    train, held_out = split_holdout(LabelledNumbers(labels), count, seed)
    assert len(held_out) == count
    assert np.array_equal(np.sort(np.concatenate([train, held_out])), np.arange(len(labels)))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held_out) > 0)


def test_holdout_is_balanced_and_leaves_one_of_each_class() -> None:
    labels = [0] * 50 + [1] * 50 + [2]
    train, held_out = split_holdout(LabelledNumbers(labels), 21, 0)
    assert np.bincount(np.array(labels)[held_out], minlength=3).tolist() == [11, 10, 0]
    assert 100 in train


def test_holdout_without_labels_follows_the_key() -> None:
    source = LabelledNumbers(None, length=40)
    first, again, other = (split_holdout(source, 10, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_holdout_of_everything_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be held out"):
        split_holdout(LabelledNumbers(None, length=4), 4, 0)
