"""Hidden patches drawn on the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.masking import keyed_mask, make_masking
from beitcli.pictures.masks import HIDDEN, SEAM, mask_overlay, mask_panel, spread


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "grid"),
    [((224, 224), (14, 14)), ((64, 64), (8, 8)), ((500, 375), (14, 14)), ((17, 9), (3, 5)), ((2, 3), (6, 6))],
)
def test_overlay_leaves_visible_pixels_and_greys_hidden_ones(size, grid):
    image = noise(size)
    mask = keyed_mask(make_masking("random", grid, grid[0] * grid[1] // 2), 0, 0, 0)
    picture = mask_overlay(image, mask)
    factor = picture.width // size[0]
    assert picture.width >= 448
    assert picture.size == (size[0] * factor, size[1] * factor)
    hidden = spread(mask, picture.size)
    pixels = np.asarray(picture)
    original = np.asarray(image).repeat(factor, 0).repeat(factor, 1)
    assert np.array_equal(pixels[~hidden], original[~hidden])
    grey = (pixels[hidden] == HIDDEN).all(-1)
    assert (grey | (pixels[hidden] == SEAM).all(-1)).all()
    assert grey.mean() > 0.5


def test_overlay_shows_each_patch_of_a_block():
    picture = mask_overlay(noise((448, 448)), np.ones((4, 4), dtype=bool))
    pixels = np.asarray(picture)
    assert (pixels[::112] == SEAM).all()
    assert (pixels[:, ::112] == SEAM).all()
    assert pixels[56, 56].tolist() == list(HIDDEN)


def test_overlay_gives_every_patch_room():
    assert min(mask_overlay(noise((100, 20)), np.eye(50, dtype=bool)).size) >= 8 * 50


def test_overlay_leaves_its_image_alone():
    image = noise((448, 448))
    before = image.tobytes()
    mask_overlay(image, np.ones((14, 14), dtype=bool))
    assert image.tobytes() == before


def test_overlay_refuses_a_flat_mask():
    with pytest.raises(ValueError, match=r"\(196,\)"):
        mask_overlay(noise((224, 224)), np.ones(196, dtype=bool))


def test_spread_covers_uneven_sides_without_gaps():
    values = np.arange(6).reshape(2, 3)
    assert spread(values, (7, 3)).tolist() == [[0, 0, 1, 1, 2, 2, 2], [3, 3, 4, 4, 5, 5, 5], [3, 3, 4, 4, 5, 5, 5]]


def test_mask_panel_sets_two_or_three_side_by_side():
    image, mask = noise((224, 224)), np.eye(14, dtype=bool)
    two, three = mask_panel(image, mask), mask_panel(image, mask, noise((112, 112)))
    assert two.width == 2 * 448 + 3 * 16
    assert three.width == 3 * 448 + 4 * 16
    assert np.array_equal(np.asarray(three)[:464, : two.width - 16], np.asarray(two)[:464, : two.width - 16])
