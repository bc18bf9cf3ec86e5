"""Keyed random draws: every draw is a function of (seed, purpose, epoch, index), never of what was drawn before.

Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit key and a
256-bit counter into random words. The key is (seed, purpose); the counter starts at (0, index, epoch, 0) and only
its lowest word moves while one generator draws, so no two keys share a stream.
"""

from __future__ import annotations

import hashlib

import numpy as np

_WORD = (1 << 64) - 1


def purpose_word(purpose: str) -> int:
    """The 64-bit word that stands for a purpose, the same on every machine."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def keyed_generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A generator for one purpose at one place: about 10 microseconds.

    Args:
        seed: The run's `--seed`.
        purpose: What is drawn, such as "mask" or "crop".
        epoch: From 0.
        index: Of the image in its data, from 0.
    """
    key = np.array([seed & _WORD, purpose_word(purpose)], dtype=np.uint64)
    counter = np.array([0, index & _WORD, epoch & _WORD, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def keyed_integer(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> int:
    """A 63-bit seed for generators that are not numpy's (torch, timm's augmentations)."""
    return int(keyed_generator(seed, purpose, epoch, index).integers(1 << 63))
