"""What every masking is: a grid of patches, an exact count of hidden ones, and a draw from a generator.

A draw has two stages. `place_blocks` hides patches the way the masking wants; what is then missing or too many is
filled or trimmed uniformly at random, so that a mask has exactly `num_masked` patches (static shapes downstream).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from beitcli.errors import UsageError


class Block(NamedTuple):
    """A rectangle of patches, in patches from the top left of the grid."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class MaskGenerator(ABC):
    """Draws masks; holds settings only, so it pickles and any process may share it.

    Args:
        grid: (h, w) patches.
        num_masked: Hidden patches of each mask, 1 to h * w.

    Raises:
        UsageError: The grid is not positive or cannot hold `num_masked`.
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
        """The stage before filling: the mask, (h, w) bool, and the blocks it is made of, in order."""

    @final
    def fill(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Hides or shows patches of `mask` in place, uniformly at random, until `num_masked` are hidden.

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
        """One mask: (h, w) bool, True where the patch is hidden, exactly `num_masked` times."""
        mask, _ = self.place_blocks(rng)
        return self.fill(mask, rng)


def check_grid(grid: tuple[int, int]) -> None:
    """Refuses a grid that is not two positive sides.

    Raises:
        UsageError: Otherwise.
    """
    if len(grid) != 2 or min(grid) < 1:
        sides = ",".join(str(side) for side in grid)
        raise UsageError(f"--grid {sides} is not a grid of patches.", "Pass --grid H,W with both at least 1, as 14,14.")
