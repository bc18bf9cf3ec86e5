"""Mask generators: which patches pretraining hides. To add one, add a file here and an entry to `MASKINGS`.

A mask is a function of (seed, epoch, image index): `keyed_mask` draws the same mask in any worker or process, in any
order, and in `beit mask-preview`.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from beitcli.config.nearest import suggestion
from beitcli.errors import UsageError
from beitcli.masking.base import Block, MaskGenerator, check_grid
from beitcli.masking.blockwise import MAX_ASPECT, MIN_BLOCK, BlockwiseMasking
from beitcli.masking.random import RandomMasking
from beitcli.runtime.compute.keyed_rng import keyed_generator

__all__ = ["DEFAULT_RATIO", "MASKINGS", "Block", "MaskGenerator", "keyed_mask", "make_masking", "num_masked_from"]

DEFAULT_RATIO = 0.4  # BEiT, section 2.3

MASKINGS: dict[str, type[MaskGenerator]] = {"blockwise": BlockwiseMasking, "random": RandomMasking}


def make_masking(
    name: str,
    grid: tuple[int, int],
    num_masked: int,
    min_block: int = MIN_BLOCK,
    max_aspect: float = MAX_ASPECT,
) -> MaskGenerator:
    """Builds a mask generator.

    Args:
        name: A key of `MASKINGS`.
        grid: (h, w) patches.
        num_masked: Number of hidden patches per mask, 1 to h * w.
        min_block: Minimum area of a block in patches, for generators that draw blocks.
        max_aspect: Maximum height / width of a block, for generators that draw blocks.

    Raises:
        UsageError: Unknown name, or settings out of range.
    """
    masking = MASKINGS.get(name)
    if masking is None:
        hint = f"{suggestion(name, MASKINGS)} There are: {', '.join(MASKINGS)}.".strip()
        raise UsageError(f"--masking {name} is not known.", hint)
    taken = {field.name for field in fields(masking)}
    settings = {"min_block": min_block, "max_aspect": max_aspect}
    chosen = {key: value for key, value in settings.items() if key in taken}
    return masking(grid=grid, num_masked=num_masked, **chosen)


def num_masked_from(ratio: float | None, num_masked: int | None, grid: tuple[int, int]) -> int:
    """Returns the number of hidden patches: `num_masked` if given, else the ratio of the grid, rounded.

    The paper's 0.4 of 196 patches is 78. The release hides 75 ("at most 75", section 2.5): pass that as `num_masked`.

    Args:
        ratio: In (0, 1]; `DEFAULT_RATIO` if both are None.
        num_masked: 1 to h * w.
        grid: (h, w) patches.

    Raises:
        UsageError: Both are given, or the one given is out of range.
    """
    check_grid(grid)
    patches = grid[0] * grid[1]
    if num_masked is not None:
        if ratio is not None:
            raise UsageError(f"--num-masked {num_masked} and --ratio {ratio:g} say the same thing twice.", "Pass one.")
        if not 1 <= num_masked <= patches:
            raise UsageError(
                f"--num-masked {num_masked} of {patches} patches cannot be met.", f"Pass 1 to {patches}, or --ratio."
            )
        return num_masked
    share = DEFAULT_RATIO if ratio is None else ratio
    if not 0 < share <= 1:
        raise UsageError(f"--ratio {share:g} is not a share of the patches.", "Pass above 0 up to 1, as 0.4.")
    count = round(share * patches)
    if count < 1:
        raise UsageError(f"--ratio {share:g} of {patches} patches hides none.", "Pass --num-masked 1 or more.")
    return count


def keyed_mask(generator: MaskGenerator, seed: int, epoch: int, index: int) -> np.ndarray:
    """Draws the mask of one image in one epoch: (h, w) bool, True where the patch is hidden.

    Args:
        generator: From `make_masking`.
        seed: The run's `--seed`.
        epoch: From 0.
        index: Of the image in its data, from 0.
    """
    return generator(keyed_generator(seed, "mask", epoch, index))
