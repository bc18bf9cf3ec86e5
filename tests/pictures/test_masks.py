"""Hidden patches drawn on the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from beitcli.masking import keyed_mask, make_masking
from beitcli.pictures.canvas import PREVIEW_TEXT, font_of, wrapped
from beitcli.pictures.masks import HIDDEN, RIGHT, SEAM, WRONG, Guesses, mark_guesses, mask_overlay, mask_panels, spread
from beitcli.pictures.panels import INK


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


def test_panels_are_two_or_with_guesses_four():
    image, mask = noise((224, 224)), np.eye(14, dtype=bool)
    assert [panel.title for panel in mask_panels(image, mask, title="a.jpg")] == ["a.jpg", "hidden"]
    right = np.zeros((14, 14), dtype=bool)
    right[:5, :5] = True
    guesses = Guesses(noise((112, 112)), noise((56, 56)), right, 0.02)
    panels = mask_panels(image, mask, guesses)
    assert len(panels) == 4
    assert guesses.legend == ("disc: right, cross: wrong", "always the most frequent token: 2.0% right")
    never = replace(guesses, baseline=0.0).legend[1]
    assert never == "always the most frequent token of training, which no measured patch has: 0.0% right"
    assert replace(guesses, baseline=0.0004).legend[1] == "always the most frequent token: 0.04% right"
    assert Guesses(guesses.picture).legend == ()
    assert {panel.picture.size for panel in panels} == {(448, 448)}
    small, own = font_of(round(0.86 * PREVIEW_TEXT)), panels[2].notes[0]
    assert wrapped(own, small, 224) == [own]  # on one line below the previews of a run
    assert panels[3].notes == ("5 of 14 right (36%)",)
    assert len(mask_panels(image, mask, Guesses(noise((112, 112))))) == 3


def test_guesses_are_outlined_and_marked_where_the_mask_is():
    mask, right = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    mask[2:4, 3:6] = True
    right[2] = True
    picture = Image.new("RGB", (448, 448), (90, 90, 90))
    mark_guesses(picture, mask, right)
    pixels = np.asarray(picture)
    touched = (pixels != 90).any(axis=-1)
    hidden = spread(mask, picture.size)
    assert not touched[~hidden].any()
    rows, columns = np.nonzero(hidden)
    assert (pixels[rows.min(), columns.min() : columns.max() + 1] == INK).all()  # its upper edge
    assert (pixels[rows.min() : rows.max() + 1, columns.max()] == INK).all()
    assert not touched[rows.min() + 4 : rows.min() + 12, 3 * 56 + 50 : 3 * 56 + 62].any()  # no line between two patches
    for row, column in np.argwhere(mask):
        centre = pixels[56 * row + 28, 56 * column + 28].tolist()
        assert centre == list(RIGHT if right[row, column] else WRONG)
    disc, cross = pixels[112:168, 168:224], pixels[168:224, 168:224]
    assert (disc[20:36, 20:36] == RIGHT).all(-1).mean() > 0.45  # told apart by their shapes too
    assert (cross[20:36, 20:36] == WRONG).all(-1).mean() < 0.35
