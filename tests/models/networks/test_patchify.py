"""Pixels of patches: the layout by hand, and back."""

from __future__ import annotations

import pytest
import torch

from beitcli.models.networks.patchify import join_patches, patch_pixels


def test_patch_pixels_by_hand():
    """4 x 6 pixels in patches of 2: the value is 100 * channel + 10 * row + column."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    images = torch.stack([100 * channel + 10 * rows + columns for channel in range(3)])[None]
    patches = patch_pixels(images, 2)
    assert patches.shape == (1, 6, 12)
    assert patches[0, 0].tolist() == [0, 1, 10, 11, 100, 101, 110, 111, 200, 201, 210, 211]
    assert patches[0, 1, :4].tolist() == [2, 3, 12, 13]
    assert patches[0, 5, 8:].tolist() == [224, 225, 234, 235]


@pytest.mark.parametrize(("height", "width", "patch_size"), [(8, 8, 4), (6, 9, 3), (4, 2, 1), (5, 5, 5)])
def test_patches_join_to_the_images_they_are_of(height, width, patch_size):
    images = torch.rand(2, 3, height, width)
    patches = patch_pixels(images, patch_size)
    grid = (height // patch_size, width // patch_size)
    assert patches.shape == (2, grid[0] * grid[1], 3 * patch_size**2)
    assert torch.equal(join_patches(patches, grid, patch_size), images)
