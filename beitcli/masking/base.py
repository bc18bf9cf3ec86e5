"""Base class of mask generators: masks of a grid with an exact number of hidden patches.

A mask is drawn in two stages. `place_blocks` hides patches by the generator's own rule. `fill` then hides or reveals
patches uniformly at random until exactly `num_masked` are hidden, so that shapes downstream are static.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from beitcli.errors import UsageError


class Block(NamedTuple):
    """A rectangle of patches; `top` and `left` count from the upper left corner of the grid."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class MaskGenerator(ABC):
    """Draws masks. An instance holds settings only, so it can be pickled and shared between processes.

    Args:
        grid: (h, w) patches.
        num_masked: Number of hidden patches per mask, 1 to h * w.

    Raises:
        UsageError: The grid is not positive, or `num_masked` does not fit it.
    """

    grid: tuple[int, int]
    num_masked: int

    def __post_init__(self) -> None:
        check_grid(self.grid)
        patches = self.grid[0] * self.grid[1]
        if not 1 <= self.num_masked <= patches:
            raise UsageError(
                f"--num-masked {self.num_masked} of {patches} patches ({self.grid[0]} x {self.grid[1]}) cannot be met.",
                f"Pass --num-masked from 1 to {patches}, or --ratio above 0 up to 1.",
            )

    @abstractmethod
    def place_blocks(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Block]]:
        """Draws the mask before filling, (h, w) bool, and its blocks in the order placed."""

    @final
    def fill(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hides or reveals patches of `mask` in place, uniformly at random, until `num_masked` are hidden.

        Args:
            mask: (h, w) bool, contiguous.
        """
        missing = self.num_masked - np.count_nonzero(mask)
        if missing:
            patches = mask.reshape(-1)
            candidates = np.flatnonzero(patches != (missing > 0))
            patches[rng.choice(candidates, abs(missing), replace=False, shuffle=False)] = missing > 0
        return mask

    @final
    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draws one mask: (h, w) bool, True at exactly `num_masked` hidden patches."""
        mask, _ = self.place_blocks(rng)
        return self.fill(mask, rng)


def check_grid(grid: tuple[int, int]) -> None:
    """Raises UsageError unless a grid has two positive sides."""
    if len(grid) != 2 or min(grid) < 1:
        sides = ",".join(str(side) for side in grid)
        raise UsageError(f"--grid {sides} is not a grid of patches.", "Pass --grid H,W with both at least 1, as 14,14.")
