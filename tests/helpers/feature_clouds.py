"""Labelled vectors whose classes overlap: neither all right nor all wrong."""

from __future__ import annotations

import numpy as np


def clouds(images: int, classes: int = 5, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(images, width) vectors around the centre of their class, and (images,) labels; centres are those of any seed."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, width))
    labels = generator.integers(classes, size=images)
    return centres[labels] + generator.normal(0, 1.2, (images, width)), labels
