"""Finds images that are the same: by bytes, by pixels, or nearly, in a time that grows little faster than their number.

Two hashes of 64 bits that differ in at most 4 agree in at least 2 of 6 bands. So the images are sorted by each of the
15 pairs of bands, 21 to 22 bits, and only neighbours with equal pairs are compared, unless they are in one group by
then: of the frames of one film nearly all are joined by the first comparison with a neighbour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

CopyKind = Literal["bytes", "pixels", "near"]
_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # first bit, bits
MOST_BITS, MOST_BITS_OF_COLUMNS = 4, 8
MOST_DIFFERENCE = 6.0  # mean over the small picture, of 255
LEAST_CONTRAST = 3.0  # standard deviation of the small picture; of less, hashes are noise
_MOST_IN_BUCKET = 256  # images compared with one another; of more only those close in order


@dataclass(frozen=True)
class Copies:
    """Images that are the same.

    Attributes:
        kind: What is the same; of several, the least.
        members: Indices, ascending; at least two.
    """

    kind: CopyKind
    members: tuple[int, ...]


@dataclass
class Signatures:
    """What copies are found by, of n images.

    Attributes:
        readable: (n,) bool.
        files, pixels: (n, 16) uint8 digests.
        rows, columns: (n,) uint64 difference hashes.
        small: (n, k) uint8 small pictures.
    """

    readable: np.ndarray
    files: np.ndarray
    pixels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    small: np.ndarray

    @classmethod
    def empty(cls, images: int, digest_bytes: int, small: int) -> Signatures:
        return cls(
            np.zeros(images, bool),
            np.zeros((images, digest_bytes), np.uint8),
            np.zeros((images, digest_bytes), np.uint8),
            np.zeros(images, np.uint64),
            np.zeros(images, np.uint64),
            np.zeros((images, small), np.uint8),
        )


def find_copies(signatures: Signatures) -> list[Copies]:
    """Groups the readable images that are the same, in the order of their first members."""
    readable = np.flatnonzero(signatures.readable)
    groups = _Groups(len(signatures.readable))
    for kind, digests in (("bytes", signatures.files), ("pixels", signatures.pixels)):
        for members in _equal(digests, readable):
            groups.join(members, kind)  # type: ignore[arg-type]
    contrast = signatures.small[readable].std(axis=1)
    firsts = [index for index in readable[contrast >= LEAST_CONTRAST].tolist() if groups.first(index) == index]
    _join_near(signatures, np.array(firsts, dtype=np.int64), groups)
    return groups.copies()


def _equal(digests: np.ndarray, among: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Yields the groups of images with equal digests."""
    if not len(among):
        return
    _, group, counts = np.unique(digests[among], axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(counts)
    for number in np.flatnonzero(counts > 1).tolist():
        yield tuple(among[order[ends[number] - counts[number] : ends[number]]].tolist())


def _join_near(signatures: Signatures, among: np.ndarray, groups: _Groups) -> None:
    """Joins images that are nearly the same."""
    hashes = signatures.rows[among]
    for one, other in itertools.combinations(_BANDS, 2):
        key = _band(hashes, one) << np.uint64(other[1]) | _band(hashes, other)
        order = np.argsort(key, kind="stable")
        key, images = key[order], among[order]
        for step in range(1, _MOST_IN_BUCKET):
            root = groups.firsts(images)
            is_open = _of_several_groups(key, root)
            key, images, root = key[is_open], images[is_open], root[is_open]
            if len(key) <= step:
                break
            left = np.flatnonzero((key[step:] == key[:-step]) & (root[step:] != root[:-step]))
            for pair in _verified(signatures, images[left], images[left + step]):
                groups.join(pair, "near")


def _of_several_groups(key: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Returns (n,) bool: whether an image's bucket, the neighbours of equal key, has images of two groups or more."""
    if not len(key):
        return np.zeros(0, bool)
    starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    mixed = np.minimum.reduceat(root, starts) != np.maximum.reduceat(root, starts)
    return np.repeat(mixed, np.diff(starts, append=len(key)))


def _band(hashes: np.ndarray, band: tuple[int, int]) -> np.ndarray:
    first, bits = band
    return (hashes >> np.uint64(first)) & np.uint64((1 << bits) - 1)


def _verified(signatures: Signatures, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the pairs whose hashes and small pictures agree."""
    differing = np.bitwise_count(signatures.rows[left] ^ signatures.rows[right])
    across = np.bitwise_count(signatures.columns[left] ^ signatures.columns[right])
    close = np.flatnonzero((differing <= MOST_BITS) & (across <= MOST_BITS_OF_COLUMNS))
    left, right = left[close], right[close]
    apart = np.abs(signatures.small[left].astype(np.int16) - signatures.small[right]).mean(axis=1)
    for place in np.flatnonzero(apart <= MOST_DIFFERENCE).tolist():
        yield int(left[place]), int(right[place])


class _Groups:
    """Union-find of images, with the least similarity in each group."""

    def __init__(self, images: int) -> None:
        self._above = np.arange(images)
        self._kind: dict[int, CopyKind] = {}

    def first(self, index: int) -> int:
        """Returns the smallest member of an image's group."""
        root = index
        while self._above[root] != root:
            root = int(self._above[root])
        while self._above[index] != root:
            self._above[index], index = root, int(self._above[index])
        return root

    def firsts(self, indices: np.ndarray) -> np.ndarray:
        """Returns the smallest member of each image's group."""
        above = self._above
        while True:
            further = above[above]
            if np.array_equal(further, above):
                break
            above = further
        self._above = above
        return above[indices]

    def join(self, members: tuple[int, ...], kind: CopyKind) -> None:
        roots = sorted({self.first(member) for member in members})
        for root in roots[1:]:
            self._above[root] = roots[0]
        if len(roots) > 1:
            self._kind[roots[0]] = kind  # called from the strictest kind to the loosest

    def copies(self) -> list[Copies]:
        members: dict[int, list[int]] = {}
        for index in np.flatnonzero(self._above != np.arange(len(self._above))).tolist():
            members.setdefault(self.first(index), []).append(index)
        return [Copies(self._kind[root], (root, *sorted(rest))) for root, rest in sorted(members.items())]
