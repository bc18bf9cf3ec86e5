"""Random masking: patches drawn uniformly without replacement (the ablation of BEiT's Table 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beitcli.masking.base import Block, MaskGenerator


@dataclass(frozen=True, kw_only=True)
class RandomMasking(MaskGenerator):
    """Masks without blocks: `fill` hides all patches."""

    def place_blocks(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Block]]:
        """Returns an empty mask, (h, w) bool, all False, and no blocks."""
        return np.zeros(self.grid, dtype=bool), []
