"""Linear classifiers on frozen features, one per layer, trained together (paper appendix D).

    loss = sum over layers of cross_entropy(W_l feature_l + b_l, label)

AdamW is elementwise and the heads share no parameters, so each is what it would be if trained alone. AdamW 4e-3, weight
decay 1e-4, batch 1024, 50 epochs, cosine to 0 without warm-up; heads are initialized with zeros. `train_probes` learns
from the features of the center crop; `augmented.py` from new views in each epoch. What the release does otherwise is in
`forms.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from beitcli.data.caches.feature_cache import Features
from beitcli.data.loading.sampler import KeyedPermutation
from beitcli.engine.events import OnEvent, Progress, ignore
from beitcli.engine.probing.knn import Counts, count_right
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.compute.optimizer import AdamW

_HELD_BYTES = 4e9  # features up to this size are read into memory once, larger ones per batch
_BLOCK = 4096


@dataclass(frozen=True)
class ProbeTraining:
    """Hyperparameters of the probes; the defaults are the paper's. The last three: see `ProbeForm`."""

    epochs: int = 50
    lr: float = 4e-3
    weight_decay: float = 1e-4
    batch_size: int = 1024
    seed: int = 0
    weight_std: float = 0.0
    decays_bias: bool = False
    anneals_by_epoch: bool = False

    def steps_per_epoch(self, images: int) -> int:
        return math.ceil(images / self.batch_size)


class LinearProbes(nn.Module):
    """Independent linear heads, one per layer."""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width, classes))
        self.bias = nn.Parameter(torch.zeros(layers, 1, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (layers, b, D) to (layers, b, classes)."""
        return torch.baddbmm(self.bias, features, self.weight)


class ProbeTrainer:
    """The heads of some layers with their optimizer.

    Args:
        images: Number of training images, for the schedule.
    """

    def __init__(
        self, layers: Sequence[int], width: int, classes: int, how: ProbeTraining, images: int, device: torch.device
    ) -> None:
        probes = LinearProbes(len(layers), width, classes)
        if how.weight_std:
            for place, layer in enumerate(layers):
                generator = torch.Generator().manual_seed(keyed_integer(how.seed, "probe weights", 0, layer))
                nn.init.normal_(probes.weight.data[place], std=how.weight_std, generator=generator)
        self.probes, self.how, self.steps_per_epoch = probes.to(device), how, how.steps_per_epoch(images)
        groups: list[dict[str, Any]] = [
            {"params": [self.probes.weight], "weight_decay": how.weight_decay},
            {"params": [self.probes.bias], "weight_decay": how.weight_decay if how.decays_bias else 0.0},
        ]
        self.optimizer = AdamW(groups, lr=how.lr)

    def step(self, epoch: int, number: int, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes step `number` of an epoch on (layers, b, D) features and (b,) int64 labels, on the device."""
        how, layers = self.how, len(features)
        done = (epoch if how.anneals_by_epoch else epoch + number / self.steps_per_epoch) / how.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = how.lr * (1 + math.cos(math.pi * done)) / 2
        logits = self.probes(features)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.expand(layers, -1).flatten()) * layers
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def train_probes(
    train: Features,
    layers: Sequence[int],
    classes: int,
    how: ProbeTraining,
    device: torch.device,
    on_event: OnEvent = ignore,
) -> LinearProbes:
    """Trains one head for each of `layers`, in that order."""
    trainer = ProbeTrainer(layers, train.layers[layers[0]].shape[1], classes, how, len(train), device)
    labels = torch.from_numpy(train.readable_labels).to(device)
    held = _held(train, layers, device)
    order = KeyedPermutation(len(train), how.seed, "probe order")
    for epoch in range(how.epochs):
        permutation = order.permutation(epoch)
        for number in range(trainer.steps_per_epoch):
            places = np.sort(permutation[number * how.batch_size : (number + 1) * how.batch_size])
            chosen = torch.from_numpy(places).to(device)
            features = held[:, chosen] if held is not None else _rows(train, layers, places, device)
            trainer.step(epoch, number, features, labels[chosen])
        on_event(Progress("linear probe", epoch + 1, how.epochs, "epoch"))
    return trainer.probes.eval()


def _held(train: Features, layers: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """Returns (layers, n, D) in memory; None if that is too large."""
    if len(layers) * len(train) * train.layers[layers[0]].shape[1] * 4 > _HELD_BYTES:
        return None
    return torch.stack([torch.from_numpy(train.take(layer, slice(None))) for layer in layers]).to(device)


def _rows(train: Features, layers: Sequence[int], places: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack([train.take(layer, places) for layer in layers])).to(device)


@torch.no_grad()
def probe_counts(
    probes: LinearProbes, val: Features, layers: Sequence[int], targets: torch.Tensor, device: torch.device
) -> dict[int, Counts]:
    """Counts the images that the head of each layer classifies correctly.

    Args:
        targets: (n,) int64 columns of the heads; -1 if they have none.
    """
    counts = dict.fromkeys(layers, Counts())
    for begin in range(0, len(val), _BLOCK):
        end = min(len(val), begin + _BLOCK)
        features = _rows(val, layers, np.arange(begin, end), device)
        for layer, logits in zip(layers, probes(features), strict=True):
            counts[layer] += count_right(logits, targets[begin:end].to(device))
    return counts
