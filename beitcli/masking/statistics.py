"""Statistics of a mask generator over many masks: `beit mask-preview --stats N`.

Takes about 2 seconds for 20,000 masks of 14 x 14, and 16 bytes of memory per mask.
"""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

import numpy as np

from beitcli.errors import UsageError
from beitcli.masking.base import MaskGenerator
from beitcli.runtime.compute.keyed_rng import keyed_generator

_CHUNK = 1000  # masks per chunk


class MaskStatistics(TypedDict):
    """Statistics of masks 0 to `masks` - 1 of an epoch.

    Keys:
        masks: Number of masks.
        grid: [h, w] patches.
        num_masked: "mean", "min" and "max" number of hidden patches.
        position_probability: (h, w), fraction of masks that hide each patch, in [0, 1].
        blocks: "mean" and "sd" of the number of blocks; "right_neighbour_masked", how often the patch to the right of a
            hidden one is hidden too (None on a grid one patch wide); "components", mean number of 4-connected
            components.
        histograms: How many masks have 0, 1, 2, ... "blocks", and how many blocks a "block_area" of 0, 1, 2, ...
            patches, before the mask is filled or trimmed.
    """

    masks: int
    grid: list[int]
    num_masked: dict[str, float]
    position_probability: list[list[float]]
    blocks: dict[str, float | None]
    histograms: dict[str, list[int]]


def mask_statistics(generator: MaskGenerator, count: int, seed: int, epoch: int = 0) -> MaskStatistics:
    """Computes statistics of the masks of the first `count` images in an epoch.

    Args:
        generator: From `make_masking`.
        count: Number of masks, at least 1.
        seed: The run's `--seed`.
        epoch: From 0.

    Raises:
        UsageError: `count` is below 1.
    """
    if count < 1:
        raise UsageError(f"--stats {count} masks have no statistics.", "Pass --stats 1 or more, as --stats 20000.")
    hidden = np.zeros(generator.grid, dtype=np.int64)
    sizes, block_counts = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    areas: Counter[int] = Counter()
    pairs = followed = components = 0
    for start in range(0, count, _CHUNK):
        masks = np.empty((min(_CHUNK, count - start), *generator.grid), dtype=bool)
        for offset in range(len(masks)):
            rng = keyed_generator(seed, "mask", epoch, start + offset)
            placed, blocks = generator.place_blocks(rng)
            masks[offset] = generator.fill(placed, rng)
            block_counts[start + offset] = len(blocks)
            areas.update(block.height * block.width for block in blocks)
        sizes[start : start + len(masks)] = masks.sum((1, 2))
        hidden += masks.sum(0)
        pairs += int(np.count_nonzero(masks[:, :, :-1]))
        followed += int(np.count_nonzero(masks[:, :, :-1] & masks[:, :, 1:]))
        components += int(count_components(masks).sum())
    return {
        "masks": count,
        "grid": list(generator.grid),
        "num_masked": {"mean": float(sizes.mean()), "min": int(sizes.min()), "max": int(sizes.max())},
        "position_probability": (hidden / count).tolist(),
        "blocks": {
            "mean": float(block_counts.mean()),
            "sd": float(block_counts.std()),
            "right_neighbour_masked": followed / pairs if pairs else None,
            "components": components / count,
        },
        "histograms": {
            "blocks": np.bincount(block_counts).tolist(),
            "block_area": [areas[area] for area in range(max(areas, default=0) + 1)],
        },
    }


def count_components(masks: np.ndarray) -> np.ndarray:
    """Counts the 4-connected components of each mask.

    Union-find over all masks at once: every pair of neighbours links the larger root to the smaller one, then paths are
    halved until each patch points to its root. A few rounds suffice for any shape.

    Args:
        masks: (B, h, w) bool.

    Returns:
        (B,) int64.
    """
    numbers = np.arange(masks.size).reshape(masks.shape)
    across, down = masks[:, :, 1:] & masks[:, :, :-1], masks[:, 1:] & masks[:, :-1]
    first = np.concatenate([numbers[:, :, :-1][across], numbers[:, :-1][down]])
    second = np.concatenate([numbers[:, :, 1:][across], numbers[:, 1:][down]])
    roots = numbers.reshape(-1).copy()
    while first.size:
        apart = roots[first] != roots[second]
        first, second = first[apart], second[apart]
        one, other = roots[first], roots[second]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(shorter := roots[roots], roots):
            roots = shorter
    return ((roots.reshape(masks.shape) == numbers) & masks).sum((1, 2))
