"""Heat maps of reference points."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.attention import attention_panel, heat_overlay, kept_patches

GREY = Image.new("RGB", (448, 448), (100, 100, 100))


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.6, [[True, False], [False, True]]),
        (0.4, [[False, False], [False, True]]),
        (0.7, [[True, False], [False, True]]),
        (0.71, [[True, False], [True, True]]),
        (1.0, [[True, True], [True, True]]),
        (0.0001, [[False, False], [False, True]]),
    ],
)
def test_kept_patches_hold_the_share_with_the_fewest(share, kept):
    attention = np.array([[0.3, 0.1], [0.2, 0.4]])
    assert kept_patches(attention, share).tolist() == kept
    assert kept_patches(attention / 5, share).tolist() == kept


def test_kept_patches_leave_out_what_holds_nothing():
    assert kept_patches(np.array([[0.0, 2.0, 0.0]]), 1.0).tolist() == [[False, True, False]]
    assert not kept_patches(np.zeros((2, 2)), 0.5).any()


@pytest.mark.parametrize("share", [0, -1, 1.2, float("nan")])
def test_kept_patches_refuse_what_is_no_share(share):
    with pytest.raises(ValueError, match="no share"):
        kept_patches(np.ones((2, 2)), share)


def test_heat_is_brightest_at_the_largest_patch_and_flat_within_patches():
    attention = np.array([[0.1, 0.2], [0.3, 0.4]])
    pixels = np.asarray(heat_overlay(GREY, attention)).astype(int)
    patches = pixels.reshape(2, 224, 2, 224, 3)
    assert (patches == patches[:, :1, :, :1]).all()
    brightness = patches[:, 0, :, 0].sum(-1)
    assert brightness.argmax() == 3
    assert (np.diff(brightness.reshape(-1)) > 0).all()


def test_threshold_takes_the_heat_off_the_rest():
    pixels = np.asarray(heat_overlay(GREY, np.array([[0.3, 0.1], [0.2, 0.4]]), threshold=0.6))
    coloured = pixels.max(-1) != pixels.min(-1)
    assert coloured[::224, ::224].tolist() == [[True, False], [False, True]]
    assert pixels[0, 300].tolist() == [50, 50, 50]


def test_heat_of_no_attention_is_dark():
    assert np.asarray(heat_overlay(GREY, np.zeros((2, 2)))).max() < 60


def test_attention_panel_marks_each_point_where_it_is():
    image = Image.new("RGB", (112, 112), (90, 160, 90))
    maps = [((20, 30), np.full((14, 14), 0.01)), ((80, 90), np.eye(14))]
    panel = attention_panel(image, maps, threshold=0.6)
    assert panel.width == 3 * 448 + 4 * 16
    original = np.asarray(panel)[16:464, 16:464]
    rows, columns = np.nonzero((original != (90, 160, 90)).any(-1))
    first = rows < 240
    assert abs(columns[first].mean() - 20.5 * 4) < 2
    assert abs(rows[first].mean() - 30.5 * 4) < 2
    assert abs(columns[~first].mean() - 80.5 * 4) < 2
    assert abs(rows[~first].mean() - 90.5 * 4) < 2


@pytest.mark.parametrize(("points", "columns"), [(1, 2), (4, 5), (5, 3), (6, 4), (9, 5)])
def test_attention_panel_breaks_rows_evenly(points, columns):
    panel = attention_panel(GREY, [((5, 5), np.ones((2, 2)))] * points, min_width=112)
    assert panel.width == columns * 448 + (columns + 1) * 16


@pytest.mark.parametrize(
    ("maps", "captions"),
    [([], None), ([((0, 0), np.ones(4))], None), ([((0, 0), np.ones((2, 2)))], ["one", "two"])],
    ids=["none", "flat", "captions"],
)
def test_attention_panel_refuses_what_it_cannot_draw(maps, captions):
    with pytest.raises(ValueError, match="maps"):
        attention_panel(GREY, maps, captions=captions)
