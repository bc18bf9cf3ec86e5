"""Keyed random numbers: every draw is a function of (seed, purpose, epoch, index), independent of earlier draws.

Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit key and a 256-bit
counter to random words. The key is (seed, purpose). The counter starts at (0, index, epoch, 0), and a generator
advances only its lowest word, so no two keys share a stream.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_WORD = (1 << 64) - 1


class _Key(ISeedSequence):
    """Gives Philox its key as it is; as `key=` it would draw a seed from the system beside it, which takes longer."""

    def __init__(self, *words: int) -> None:
        self._words = np.array(words, dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._words


@lru_cache(maxsize=256)
def purpose_word(purpose: str) -> int:
    """Returns the 64-bit word of a purpose, the same on every machine."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def keyed_generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Returns a generator for one purpose, epoch and index. Costs about 6 microseconds.

    Args:
        seed: The run's `--seed`.
        purpose: What is drawn, such as "mask" or "crop".
        epoch: From 0.
        index: Of the image in its data, from 0.
    """
    counter = np.array([0, index & _WORD, epoch & _WORD, 0], dtype=np.uint64)
    key: Any = _Key(seed & _WORD, purpose_word(purpose))  # numpy's stubs know its own SeedSequence alone
    return np.random.Generator(np.random.Philox(key, counter=counter))


def keyed_integer(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> int:
    """Returns a 63-bit seed for generators other than numpy's (torch, timm's augmentations)."""
    return int(keyed_generator(seed, purpose, epoch, index).integers(1 << 63))
