"""Synthetic features of overlapping classes, on which a classifier is right only in part."""

from __future__ import annotations

import numpy as np


def clouds(images: int, classes: int = 5, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images, width) features around class centres, and (images,) labels; `seed` does not move the centres."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, width))
    labels = generator.integers(classes, size=images)
    return centres[labels] + generator.normal(0, 1.2, (images, width)), labels
