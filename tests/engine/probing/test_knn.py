"""k nearest neighbours: votes by hand, scikit-learn on the same features, blocks, missing classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from beitcli.data.caches.feature_cache import Features
from beitcli.engine.probing.knn import Counts, Vote, count_right, knn_counts, nearest, votes
from tests.helpers.feature_clouds import clouds

CPU = torch.device("cpu")


def features(values: np.ndarray, labels: list[int] | np.ndarray, rows: list[int] | None = None) -> Features:
    chosen = np.arange(len(values)) if rows is None else np.array(rows)
    return Features({1: values.astype(np.float32)}, np.asarray(labels, dtype=np.int64), chosen, [])


def test_votes_weigh_the_exponential_of_the_cosine_by_hand():
    """Query along x; neighbours at 0, 60 and 60 degrees: one vote of class 0 against two of class 1."""
    half = math.sqrt(3) / 2
    train = features(np.array([[2.0, 0.0], [0.5, half], [5.0, 10 * half], [-1.0, 0.0]]), [0, 1, 1, 2])
    val = features(np.array([[3.0, 0.0]]), [0])
    similarities, labels = nearest(train, val, 1, 3, CPU)
    assert similarities[0].tolist() == pytest.approx([1.0, 0.5, 0.5], abs=1e-6)
    assert sorted(labels[0].tolist()) == [0, 1, 1]
    for temperature, first in ((0.07, 0), (1.0, 1)):
        scores = votes(similarities, labels, 3, temperature)[0]
        assert float(scores[0]) == 1  # the nearest one's vote is the unit
        assert float(scores[1]) == pytest.approx(2 * math.exp(-0.5 / temperature), rel=1e-5)
        assert scores[2] == -math.inf  # not among the three
        assert int(scores.argmax()) == first


@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_small_temperatures_neither_overflow_nor_forget_who_voted(temperature):
    similarities, labels = torch.tensor([[1.0, 1.0, 1.0, -0.5]]), torch.tensor([[2, 0, 2, 1]])
    scores = votes(similarities, labels, 4, temperature)
    assert scores[0, :3].isfinite().all()
    assert float(scores[0, 3]) == -math.inf
    assert count_right(scores, torch.tensor([2])) == Counts(1, 1, 1)  # two votes against one
    assert count_right(scores, torch.tensor([1])) == Counts(1, 0, 1)
    assert count_right(scores, torch.tensor([3])) == Counts(1, 0, 0)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_equals_scikit_learns(k):
    (train_values, train_labels), (values, labels) = clouds(300), clouds(120, seed=1)
    theirs = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train_values.astype(np.float32), train_labels)
    chances = theirs.predict_proba(values.astype(np.float32))
    best = np.argsort(-chances, axis=1)[:, :5]
    top5 = [labels[i] in best[i] and chances[i, labels[i]] > 0 for i in range(len(labels))]
    counts = knn_counts(
        features(train_values, train_labels), features(values, labels), torch.from_numpy(labels), 1,
        Vote(k, classes=5, temperature=0.07, device=CPU),
    )  # fmt: skip
    assert counts == Counts(120, int((chances.argmax(axis=1) == labels).sum()), sum(top5))
    assert 0.3 < counts.top1 < 0.95


@pytest.mark.parametrize("block", [1, 7, 64, 299])
def test_neighbours_do_not_depend_on_the_block(block):
    (train_values, train_labels), (values, labels) = clouds(300), clouds(50, seed=1)
    train, val = features(train_values, train_labels), features(values, labels)
    whole, small = nearest(train, val, 1, 20, CPU), nearest(train, val, 1, 20, CPU, block=block)
    assert torch.equal(whole[1], small[1])
    torch.testing.assert_close(whole[0], small[0])


def test_unreadable_rows_are_no_neighbours():
    values = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    train = features(values, [0, 1, 2], rows=[0, 2])
    _, labels = nearest(train, features(np.array([[1.0, 1.0]]), [0]), 1, 2, CPU)
    assert sorted(labels[0].tolist()) == [0, 2]


def test_a_class_that_training_has_not_is_never_right():
    train = features(np.eye(3), [0, 1, 2])
    val = features(np.eye(3)[:2], [0, 1])
    vote = Vote(k=50, classes=3, temperature=0.07, device=CPU)
    assert knn_counts(train, val, torch.tensor([0, -1]), 1, vote) == Counts(2, 1, 1)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    scores = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % 9
    parts = [count_right(scores[i : i + 7], targets[i : i + 7]) for i in range(0, 40, 7)]
    assert sum(parts, Counts()) == count_right(scores, targets)
    assert Counts().top1 == 0.0
