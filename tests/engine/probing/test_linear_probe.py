"""Linear probes: each head as if alone, an independent loop, scikit-learn's classifier, features that stay on disk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from beitcli.data.caches.feature_cache import Features
from beitcli.data.loading.sampler import KeyedPermutation
from beitcli.engine.probing import linear_probe
from beitcli.engine.probing.linear_probe import ProbeTraining, probe_counts, train_probes
from tests.helpers.feature_clouds import clouds

CPU = torch.device("cpu")
HOW = ProbeTraining(epochs=3, batch_size=64, seed=5)


def three_layers(images: int, seed: int = 0) -> Features:
    """The middle layer separates best."""
    values, labels = clouds(images, seed=seed)
    noise = np.random.default_rng(seed + 10).normal(0, 1, (2, *values.shape))
    layers = {1: values + 3 * noise[0], 2: values, 3: values + 2 * noise[1]}
    return Features({n: v.astype(np.float32) for n, v in layers.items()}, labels, np.arange(images), [])


def alone(train: Features, layer: int, how: ProbeTraining) -> tuple[torch.Tensor, torch.Tensor]:
    """A single nn.Linear, trained in a plain loop with torch's own scheduler."""
    values, labels = torch.from_numpy(train.layers[layer]), torch.from_numpy(train.labels)
    head = torch.nn.Linear(values.shape[1], 5)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": [head.weight], "weight_decay": 1e-4}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=4e-3)
    a_pass = math.ceil(len(values) / how.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.epochs * a_pass)
    for epoch in range(how.epochs):
        order = torch.from_numpy(KeyedPermutation(len(values), how.seed, "probe order").permutation(epoch))
        for chosen in order.split(how.batch_size):
            optimizer.zero_grad()
            cross_entropy(head(values[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return head.weight.detach(), head.bias.detach()


def test_heads_trained_together_equal_each_trained_alone():
    train = three_layers(300)
    probes = train_probes(train, [1, 2, 3], 5, HOW, CPU)
    for place, layer in enumerate((1, 2, 3)):
        weight, bias = alone(train, layer, HOW)
        torch.testing.assert_close(probes.weight[place].T, weight, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(probes.bias[place, 0], bias, atol=2e-5, rtol=1e-4)


def test_features_read_by_the_batch_give_the_same_heads(monkeypatch):
    train = three_layers(200)
    held = train_probes(train, [1, 3], 5, HOW, CPU)
    monkeypatch.setattr(linear_probe, "_HELD_BYTES", 0)
    assert torch.equal(held.weight, train_probes(train, [1, 3], 5, HOW, CPU).weight)


def test_probes_come_close_to_scikit_learn_and_find_the_best_layer():
    train, val = three_layers(600), three_layers(400, seed=1)
    probes = train_probes(train, [1, 2, 3], 5, ProbeTraining(epochs=100, lr=2e-2), CPU)
    counts = probe_counts(probes, val, [1, 2, 3], torch.from_numpy(val.labels), CPU)
    assert max(counts, key=lambda layer: counts[layer].top1) == 2
    for layer in (1, 2, 3):
        theirs = LogisticRegression(max_iter=1000).fit(train.layers[layer], train.labels)
        score = theirs.score(val.layers[layer], val.labels)
        assert counts[layer].top1 == pytest.approx(score, abs=0.02)


def test_probes_count_only_readable_images():
    train, val = three_layers(100), three_layers(50, seed=1)
    half = Features(val.layers, val.labels, np.arange(0, 50, 2), [])
    probes = train_probes(train, [2], 5, HOW, CPU)
    targets = torch.from_numpy(val.labels[::2])
    by_hand = probes(torch.from_numpy(val.layers[2][::2])[None])[0].argmax(dim=1)
    counts = probe_counts(probes, half, [2], targets, CPU)[2]
    assert (counts.images, counts.right1) == (25, int((by_hand == targets).sum()))


def test_standardised_features_have_mean_zero_and_deviation_one():
    train = three_layers(500)
    mean, deviation = train.moments(1)
    np.testing.assert_allclose(mean, train.layers[1].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation, train.layers[1].std(axis=0), rtol=1e-5)
    standard = Features(train.layers, train.labels, train.rows, [], {1: (mean, deviation)})
    values = standard.take(1, np.array([3, 4]))
    np.testing.assert_allclose(values, (train.layers[1][3:5] - mean) / deviation, rtol=1e-6)
