"""k nearest neighbours as an evaluation of features (the protocol of DINO, arXiv 2104.14294, section 4.1).

    similarity = cosine of query and training image
    vote of class c = sum of exp(similarity / temperature) over the images of c among the k most similar

Exact: every pair is compared, in blocks of 65,536 training images, each read once. Memory holds one block, the queries
and their k best. Similarities are float32 products; ties have no defined order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from beitcli.data.caches.feature_cache import Features

_TRAINING_BLOCK = 1 << 16
_QUERY_BLOCK = 1 << 10


@dataclass(frozen=True)
class Counts:
    """Numbers of images and of correct predictions; those of parts of the data can be added."""

    images: int = 0
    right1: int = 0
    right5: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.images + other.images, self.right1 + other.right1, self.right5 + other.right5)

    @property
    def top1(self) -> float:
        return self.right1 / max(1, self.images)

    @property
    def top5(self) -> float:
        return self.right5 / max(1, self.images)


def count_right(scores: torch.Tensor, targets: torch.Tensor) -> Counts:
    """Counts top-1 and top-5 hits of (n, classes) scores; a class with score -inf is never predicted.

    Args:
        targets: (n,) int64 columns; -1 for a class without one, which is always counted as wrong.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1)
    hits = (best.indices == targets.unsqueeze(1)) & best.values.isfinite()
    return Counts(len(targets), int(hits[:, 0].sum()), int(hits.any(dim=1).sum()))


def nearest(
    train: Features, val: Features, layer: int, k: int, device: torch.device, block: int = _TRAINING_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k most similar training images of each query.

    Args:
        k: At most the number of training images.
        block: Number of training images compared at a time.

    Returns:
        (n, k) float32 similarities in [-1, 1], largest first, and (n, k) int64 labels.
    """
    queries = F.normalize(torch.from_numpy(val.take(layer, slice(None))).to(device), dim=1)
    labels = torch.from_numpy(train.readable_labels).to(device)
    best = torch.empty((len(queries), 0), device=device)
    voters = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for begin in range(0, len(train), block):
        end = min(len(train), begin + block)
        keys = F.normalize(torch.from_numpy(train.take(layer, slice(begin, end))).to(device), dim=1)
        parts = []
        for first in range(0, len(queries), _QUERY_BLOCK):
            similarity = queries[first : first + _QUERY_BLOCK] @ keys.T
            values, places = similarity.topk(min(k, end - begin), dim=1)
            values = torch.cat((best[first : first + _QUERY_BLOCK], values), dim=1)
            those = torch.cat((voters[first : first + _QUERY_BLOCK], labels[begin:end][places]), dim=1)
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            parts.append((values, those.gather(1, order)))
        best, voters = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return best, voters


def votes(similarities: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
    """Returns (n, classes) float64 votes on the CPU (MPS has no float64), relative to the nearest; -inf for no vote."""
    similarities, labels = similarities.cpu().double(), labels.cpu()
    weights = ((similarities - similarities.amax(dim=1, keepdim=True)) / temperature).exp()
    total = torch.zeros((len(labels), classes), dtype=torch.float64)
    total.scatter_add_(1, labels, weights.clamp_min(torch.finfo(torch.float64).tiny))  # underflow is still a vote
    return total.masked_fill(total == 0, float("-inf"))


@dataclass(frozen=True)
class Vote:
    """Votes of the `k` nearest training images, each weighted by exp(similarity / temperature)."""

    k: int
    classes: int
    temperature: float
    device: torch.device


@torch.no_grad()
def knn_counts(train: Features, val: Features, targets: torch.Tensor, layer: int, vote: Vote) -> Counts:
    """Counts the queries that their neighbours classify correctly.

    Args:
        targets: (n,) int64, the training label of each query; -1 if no training image has that class.
    """
    similarities, labels = nearest(train, val, layer, min(vote.k, len(train)), vote.device)
    return count_right(votes(similarities, labels, vote.classes, vote.temperature), targets.cpu())
