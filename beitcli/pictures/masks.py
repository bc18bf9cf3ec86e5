"""Draws the hidden patches of a mask on the image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.pictures.panels import Colour, crisp, grid_of, nearest

HIDDEN: Colour = (128, 128, 128)
SEAM: Colour = (146, 146, 146)


def patch_edges(pixels: int, patches: int) -> np.ndarray:
    """Returns the pixel positions of the patch edges along a side: (patches + 1,) int64."""
    return np.arange(patches + 1) * pixels // patches


def spread(patch_values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeats each patch's value over its pixels.

    Args:
        patch_values: (h, w).
        size: (width, height) in pixels, at least one per patch.

    Returns:
        (height, width) of the same dtype.
    """
    rows, columns = (np.diff(patch_edges(size[1 - side], patch_values.shape[side])) for side in (0, 1))
    return patch_values.repeat(rows, axis=0).repeat(columns, axis=1)


def width_for(image: Image.Image, grid: tuple[int, ...], min_width: int) -> int:
    """Returns the width in pixels, at least `min_width`, at which every patch has at least 8 x 8 pixels."""
    rows, columns = grid
    return max(min_width, 8 * columns, -(-8 * rows * image.width // image.height))


def mask_overlay(
    image: Image.Image, mask: np.ndarray, min_width: int = 448, hidden: Colour = HIDDEN, seam: Colour = SEAM
) -> Image.Image:
    """Draws hidden patches in grey; the pixels of visible patches are unchanged.

    Args:
        image: The model's input; enlarged by whole pixels to at least `min_width` and 8 pixels per patch.
        mask: (h, w) bool, True where the patch is hidden.
        min_width: Minimum width of the result, in pixels.
        hidden: RGB of hidden patches.
        seam: RGB of the lines between and around hidden patches, drawn inside them.

    Raises:
        ValueError: `mask` is not (h, w).
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} is not (h, w)")
    picture = crisp(image, width_for(image, mask.shape, min_width))
    pixels = np.asarray(picture).copy()
    covered = spread(mask.astype(bool), picture.size)
    pixels[covered] = hidden
    lines = np.zeros_like(covered)
    thickness = max(1, round(picture.width / mask.shape[1] / 32))
    for offset in range(thickness):
        for edge in (patch_edges(picture.height, mask.shape[0])[:-1] + offset).tolist():
            lines[edge] = True
        for edge in (patch_edges(picture.width, mask.shape[1])[:-1] + offset).tolist():
            lines[:, edge] = True
    pixels[lines & covered] = seam
    return Image.fromarray(pixels)


def mask_panel(
    image: Image.Image, mask: np.ndarray, reconstruction: Image.Image | None = None, min_width: int = 448
) -> Image.Image:
    """Draws the original, the masked and, if given, the reconstructed image side by side, with captions.

    Args:
        image: The model's input.
        mask: (h, w) bool, True where the patch is hidden.
        reconstruction: The model's reconstruction; any size of the same aspect ratio.
        min_width: Minimum width of each picture, in pixels.
    """
    masked = mask_overlay(image, mask, min_width)
    hidden = int(mask.sum())
    pictures = [nearest(image, masked.size), masked]
    captions = ["original", f"{hidden} of {mask.size} patches hidden ({hidden / mask.size:.0%})"]
    if reconstruction is not None:
        pictures.append(nearest(reconstruction, masked.size))
        captions.append("reconstruction")
    return grid_of(pictures, captions=captions)
