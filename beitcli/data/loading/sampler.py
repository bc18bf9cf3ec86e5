"""Samplers: the order of images as a keyed permutation per epoch in O(1) memory; `--limit` and held-out subsets.

A permutation of n images is a Feistel network (Luby and Rackoff 1988) over the smallest domain of an even number of
bits that holds n, with cycle walking until the result is below n (Black and Rogaway 2002): under four steps on average.
So the image at any position of any epoch is computed directly for any n, and a run resumes from `images_seen` alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from beitcli.data.sources.base import Blocks, Source
from beitcli.errors import DataError, UsageError
from beitcli.runtime.compute.keyed_rng import keyed_generator

ROUNDS = 8  # 4 are enough for large domains; small ones need more to look uniform


class KeyedPermutation:
    """The endless stream of training images: one permutation of all images per epoch."""

    def __init__(self, length: int, seed: int, purpose: str = "order") -> None:
        """
        Args:
            length: Number of images, from 1.
            seed: The run's `--seed`.
            purpose: Gives independent orders for one seed.
        """
        if length < 1:
            raise ValueError(f"an order needs at least 1 image, not {length}")
        self.length = length
        self.seed = seed
        self.purpose = purpose
        self._half_bits = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))

    def indices(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns epochs and images at stream positions: about 0.4 microseconds each for large n, 6 for n = 256.

        Args:
            positions: (n,) integers from 0; the next one to train on is `images_seen`.

        Returns:
            (n,) int64 epochs from 0 and (n,) int64 indices of images.
        """
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.length)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self._permuted(int(epoch), places[chosen])
        return epochs, indices

    def at(self, position: int) -> tuple[int, int]:
        """Returns (epoch, index of the image) at one position of the stream."""
        epochs, indices = self.indices(np.array([position]))
        return int(epochs[0]), int(indices[0])

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the order of a whole epoch, (length,) int64."""
        return self._permuted(epoch, np.arange(self.length))

    def _permuted(self, epoch: int, places: np.ndarray) -> np.ndarray:
        keys = _round_keys(self.seed, self.purpose, epoch)
        values = _feistel(places.astype(np.uint64), keys, self._half_bits)
        outside = np.flatnonzero(values >= self.length)
        while outside.size:
            values[outside] = _feistel(values[outside], keys, self._half_bits)
            outside = outside[values[outside] >= self.length]
        return values.astype(np.int64)


class WindowedPermutation:
    """The endless stream for sources that are read by blocks: a shuffle within windows of blocks.

    In each epoch the blocks are permuted, `together` consecutive ones form a window, and the images of each window are
    permuted. So a process holds one window, and the order is still a function of (seed, epoch, position).
    """

    def __init__(self, blocks: Blocks, seed: int) -> None:
        self.blocks, self.seed = blocks, seed
        self.length = int(blocks.lengths.sum())
        self._starts = np.cumsum(blocks.lengths) - blocks.lengths
        self._block_order = KeyedPermutation(len(blocks.lengths), seed, "order of blocks")
        self._plan: tuple[int, np.ndarray, np.ndarray] = (-1, self._starts, self._starts)

    @property
    def window(self) -> int:
        """Mean number of images per window, rounded up."""
        return math.ceil(self.length * self.blocks.together / len(self.blocks.lengths))

    def indices(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns epochs and images at stream positions, as `KeyedPermutation.indices`."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.length)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            blocks, ends = self._planned(epoch)
            here = np.flatnonzero(epochs == epoch)
            together = self.blocks.together
            windows = np.searchsorted(ends, places[here], side="right") // together
            for window in np.unique(windows).tolist():
                inside = here[windows == window]
                start = int(ends[window * together - 1]) if window else 0
                end = int(ends[min((window + 1) * together, len(ends)) - 1])
                order = KeyedPermutation(end - start, self.seed, f"order of window {window}")
                # The window is a stream of its own: here its epoch-th permutation.
                _, mixed = order.indices(epoch * (end - start) + places[inside] - start)
                at = np.searchsorted(ends, mixed + start, side="right")
                block = blocks[at]
                found[inside] = self._starts[block] + (mixed + start - (ends[at] - self.blocks.lengths[block]))
        return epochs, found

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (m,) blocks in the epoch's order and (m,) end positions of each; caches the latest epoch."""
        if self._plan[0] != epoch:
            blocks = self._block_order.permutation(epoch)
            self._plan = epoch, blocks, np.cumsum(self.blocks.lengths[blocks])
        return self._plan[1:]


def rank_indices(batch_size: int, rank: int, size: int) -> np.ndarray:
    """Returns this rank's positions in the global batch, (n,) int64; over all ranks, each position occurs once.

    Position p and its mirror position batch_size - 1 - p go to the same rank, the mirror ones in reverse order: mixup
    mixes a batch with its reverse, so each rank has both images of every pair, for any world size. With one rank, this
    is the whole batch in order.
    """
    half = batch_size // 2
    if batch_size % 2 or half < size:  # mixup refuses both where there are several ranks
        return np.arange(batch_size * rank // size, batch_size * (rank + 1) // size)
    first = np.arange(half * rank // size, half * (rank + 1) // size)
    return np.concatenate((first, batch_size - 1 - first[::-1]))


def training_order(source: Source, seed: int) -> KeyedPermutation | WindowedPermutation:
    """Returns the stream of a run: shuffled within windows if the source is read by blocks, else globally."""
    blocks = source.blocks()
    if blocks is None or len(blocks.lengths) <= blocks.together:
        return KeyedPermutation(len(source), seed)
    return WindowedPermutation(blocks, seed)


@lru_cache(maxsize=64)
def _round_keys(seed: int, purpose: str, epoch: int) -> np.ndarray:
    return keyed_generator(seed, purpose, epoch).integers(1 << 64, size=ROUNDS, dtype=np.uint64)


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: np.uint64) -> np.ndarray:
    """Applies a keyed bijection of [0, 4 ** half_bits): (n,) uint64 -> (n,) uint64."""
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & low
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & low)
    return (left << half_bits) | right


def _mixed(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): every input bit affects every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def select_limit(source: Source, limit: int, seed: int) -> np.ndarray:
    """Selects the images of `--limit`, balanced over classes if there are labels.

    A smaller limit selects a subset of a larger one.

    Returns:
        (min(limit, len(source)),) int64 indices in the keyed order.

    Raises:
        UsageError: The limit is below 1.
    """
    if limit < 1:
        raise UsageError(f"--limit {limit} takes no images.", hint="Give 1 or more.")
    order = KeyedPermutation(len(source), seed, "limit")
    if source.classes is None:
        return order.permutation(0) if limit >= len(source) else order.indices(np.arange(limit))[1]
    permutation = order.permutation(0)
    labels = _labels(source)[permutation]
    chosen = np.lexsort((labels, _rank_in_class(labels)))[:limit]
    return permutation[np.sort(chosen)]


def split_holdout(source: Source, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits off held-out images, balanced over classes if there are labels; a class's last image is taken last of all.

    Remote images are taken from a few blocks that hold four times `count`, so that not all blocks are downloaded.

    Args:
        source: The images to split.
        count: Number of images to hold out, from 0.
        seed: The run's `--seed`.

    Returns:
        (len(source) - count,) and (count,) int64 indices, disjoint, each ascending.

    Raises:
        DataError: No image would be left.
    """
    if not 0 <= count < len(source):
        raise DataError(
            f"{count:,} images cannot be held out of the {len(source):,} of '{source.name}'.",
            hint="Hold out fewer, or give more data.",
        )
    permutation = KeyedPermutation(len(source), seed, "holdout").permutation(0)
    blocks = source.blocks()
    if blocks is not None and blocks.are_remote:
        permutation = permutation[_in_few_blocks(permutation, blocks, count, seed)]
    if source.classes is None:
        held_out = permutation[:count]
    else:
        labels = _labels(source)[permutation]
        rank = _rank_in_class(labels)
        is_last = rank == np.bincount(labels)[labels] - 1
        held_out = permutation[np.lexsort((labels, rank, is_last))[:count]]
    is_train = np.ones(len(source), dtype=bool)
    is_train[held_out] = False
    return np.flatnonzero(is_train), np.sort(held_out)


def _in_few_blocks(indices: np.ndarray, blocks: Blocks, count: int, seed: int) -> np.ndarray:
    """Returns (n,) bool: images in the first blocks, in keyed order, that hold four times `count`; 8 blocks or more."""
    drawn = KeyedPermutation(len(blocks.lengths), seed, "blocks of the holdout").permutation(0)
    needed = int(np.searchsorted(np.cumsum(blocks.lengths[drawn]), 4 * count)) + 1
    chosen = np.zeros(len(drawn), dtype=bool)
    chosen[drawn[: max(8, needed)]] = True
    return chosen[np.searchsorted(np.cumsum(blocks.lengths), indices, side="right")]


def _labels(source: Source) -> np.ndarray:
    return np.fromiter((source.label(index) for index in range(len(source))), dtype=np.int64, count=len(source))


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Returns (n,) int64: number of earlier images of the same class."""
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    return rank
