"""Splits images into the pixels of patches, for patch embedding and pixel targets (BEiT's Table 4), and joins them."""

from __future__ import annotations

import torch


def patch_pixels(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Splits images (B, 3, H, W) into the pixels of their patches, (B, N, 3 * P * P).

    Patches are in row-major order; within a patch all red values come first, then green, then blue, each row-major.
    """
    rows, columns = images.shape[2] // patch_size, images.shape[3] // patch_size
    split = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))  # (B, 3, h, P, w, P)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def join_patches(pixels: torch.Tensor, grid: tuple[int, int], patch_size: int) -> torch.Tensor:
    """Inverts `patch_pixels`: (B, N, 3 * P * P) -> (B, 3, H, W).

    Args:
        grid: (h, w) with h * w = N.
    """
    split = pixels.unflatten(2, (3, patch_size, patch_size)).unflatten(1, grid)  # (B, h, w, 3, P, P)
    return split.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
