"""Small labelled scenes for segmentation: images and masks of three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("left", "top", "rest")
IGNORE = 9


def save_scene(root: Path, name: str, seed: int, shape: tuple[int, int] = (40, 52), ignore: int = IGNORE) -> None:
    """Saves an image with one coloured region per class, at random positions, and its mask with an ignored rim."""
    rng = np.random.default_rng(seed)
    height, width = shape
    across, down = rng.integers(14, width - 14), rng.integers(12, height - 12)
    mask = np.full(shape, 2, np.uint8)
    mask[:down] = 1
    mask[:, :across] = 0
    colours = np.array([[220, 40, 40], [40, 60, 220], [40, 200, 60]], np.uint8)
    pixels = np.clip(colours[mask] + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
    mask[:2] = ignore
    for kind, array in (("images", pixels), ("masks", mask)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / kind / f"{name}.png")
