"""Linear classifiers on frozen features, one per layer, trained together (paper appendix D).

    loss = sum over layers of cross_entropy(W_l feature_l + b_l, label)

AdamW is elementwise and the heads share no parameters, so each is what it would be if trained alone. AdamW 4e-3, weight
decay 1e-4, batch 1024, 50 epochs, cosine to 0 without warm-up; heads are initialized with zeros. The features are those
of the center crop: unlike in the paper, images are not augmented, which would need a forward pass per epoch.
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

_HELD_BYTES = 4e9  # features up to this size are read into memory once, larger ones per batch
_BLOCK = 4096


@dataclass(frozen=True)
class ProbeTraining:
    """Hyperparameters of the probes; the defaults are the paper's."""

    epochs: int = 50
    lr: float = 4e-3
    weight_decay: float = 1e-4
    batch_size: int = 1024
    seed: int = 0


class LinearProbes(nn.Module):
    """Independent linear heads, one per layer."""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, width, classes))
        self.bias = nn.Parameter(torch.zeros(layers, 1, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (layers, b, D) to (layers, b, classes)."""
        return torch.baddbmm(self.bias, features, self.weight)


def train_probes(
    train: Features,
    layers: Sequence[int],
    classes: int,
    how: ProbeTraining,
    device: torch.device,
    on_event: OnEvent = ignore,
) -> LinearProbes:
    """Trains one head for each of `layers`, in that order."""
    width = train.layers[layers[0]].shape[1]
    probes = LinearProbes(len(layers), width, classes).to(device)
    groups: list[dict[str, Any]] = [
        {"params": [probes.weight], "weight_decay": how.weight_decay},
        {"params": [probes.bias]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=how.lr, weight_decay=0.0)
    labels = torch.from_numpy(train.readable_labels).to(device)
    held = _held(train, layers, device)
    order = KeyedPermutation(len(train), how.seed, "probe order")
    a_pass = math.ceil(len(train) / how.batch_size)
    for epoch in range(how.epochs):
        permutation = order.permutation(epoch)
        for number in range(a_pass):
            places = np.sort(permutation[number * how.batch_size : (number + 1) * how.batch_size])
            done = (epoch * a_pass + number) / (how.epochs * a_pass)
            for group in optimizer.param_groups:
                group["lr"] = how.lr * (1 + math.cos(math.pi * done)) / 2
            chosen = torch.from_numpy(places).to(device)
            features = held[:, chosen] if held is not None else _rows(train, layers, places, device)
            logits = probes(features)
            targets = labels[chosen].expand(len(layers), -1)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * len(layers)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        on_event(Progress("linear probe", epoch + 1, how.epochs, "epoch"))
    return probes.eval()


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
