"""Heat maps of reference points."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.attention import add_colorbar, attention_panel, draw_heatmap, percent, top_mass_patches
from beitcli.pictures.panels import caption_size

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
    assert top_mass_patches(attention, share).tolist() == kept
    assert top_mass_patches(attention / 5, share).tolist() == kept


def test_kept_patches_leave_out_what_holds_nothing():
    assert top_mass_patches(np.array([[0.0, 2.0, 0.0]]), 1.0).tolist() == [[False, True, False]]
    assert not top_mass_patches(np.zeros((2, 2)), 0.5).any()


@pytest.mark.parametrize("share", [0, -1, 1.2, float("nan")])
def test_kept_patches_refuse_what_is_no_share(share):
    with pytest.raises(ValueError, match="no share"):
        top_mass_patches(np.ones((2, 2)), share)


def test_heat_is_brightest_at_the_largest_patch_and_flat_within_patches():
    attention = np.array([[0.1, 0.2], [0.3, 0.4]])
    pixels = np.asarray(draw_heatmap(GREY, attention)).astype(int)
    patches = pixels.reshape(2, 224, 2, 224, 3)
    assert (patches == patches[:, :1, :, :1]).all()
    brightness = patches[:, 0, :, 0].sum(-1)
    assert brightness.argmax() == 3
    assert (np.diff(brightness.reshape(-1)) > 0).all()


def test_threshold_takes_the_heat_off_the_rest():
    pixels = np.asarray(draw_heatmap(GREY, np.array([[0.3, 0.1], [0.2, 0.4]]), threshold=0.6))
    coloured = pixels.max(-1) != pixels.min(-1)
    assert coloured[::224, ::224].tolist() == [[True, False], [False, True]]
    assert pixels[0, 300].tolist() == [50, 50, 50]


def test_smooth_heat_is_interpolated_between_the_centres_of_patches():
    attention = np.array([[0.1, 0.2], [0.3, 0.4]])
    blocks, smooth = (np.asarray(draw_heatmap(GREY, attention, smooth=each)).astype(int) for each in (False, True))
    assert np.abs(smooth[336, 336] - blocks[336, 336]).max() <= 12  # the centre of a patch
    assert np.abs(np.diff(smooth, axis=1)).max() <= 4
    kept = np.asarray(draw_heatmap(GREY, np.array([[0.0, 0.0], [0.0, 1.0]]), threshold=0.6, smooth=True)).astype(int)
    assert np.abs(kept[20, 20] - 50).max() <= 1


def test_heat_of_no_attention_is_dark():
    assert np.asarray(draw_heatmap(GREY, np.zeros((2, 2)))).max() < 60


def scale_of(attention: np.ndarray, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What stands under a map of 448 pixels: all of it, and the bar's own row of colours."""
    picture = add_colorbar(draw_heatmap(GREY, attention, threshold), attention, threshold)
    below = np.asarray(picture).astype(int)[448:]
    return below, below[len(below) // 2 + 4]


def test_scale_runs_from_the_colour_of_nothing_to_that_of_the_largest():
    attention = np.array([[0.05, 0.1], [0.15, 0.4]])
    _, bar = scale_of(attention)
    image = Image.new("RGB", (2, 2), (128, 128, 128))
    colours = np.asarray(draw_heatmap(image, attention)).astype(int)
    assert np.abs(bar[447] - colours[1, 1]).max() <= 1
    for share, colour in ((0.05, colours[0, 0]), (0.1, colours[0, 1]), (0.15, colours[1, 0])):
        assert np.abs(bar[round(447 * share / 0.4)] - colour).max() <= 4


def test_scale_marks_where_attention_spread_evenly_would_lie():
    """0.25 of 0.4 with four patches; of a map without a difference the end."""
    for attention, place in ((np.array([[0.05, 0.1], [0.15, 0.4]]), 447 * 0.625), (np.full((2, 2), 0.25), 447)):
        _, bar = scale_of(attention)
        dark = np.flatnonzero((bar == (40, 40, 44)).all(-1))
        assert len(dark)
        assert np.abs(dark - place).max() <= 2
    _, bar = scale_of(np.full((2, 2), 0.1))  # the class token has the rest
    assert not (bar == (40, 40, 44)).all(-1).any()


def test_scale_is_plain_below_what_the_threshold_keeps():
    _, bar = scale_of(np.array([[0.3, 0.1], [0.2, 0.4]]), threshold=0.6)
    plain = bar.max(-1) == bar.min(-1)
    mark = round(447 * 0.25 / 0.4)
    plain[mark - 3 : mark + 4] = True
    assert abs(np.flatnonzero(plain).max() - 447 * 0.75) <= 2


def test_scale_keeps_images_without_a_map_level_with_those_that_have_one():
    without = add_colorbar(GREY, None)
    assert without.size == add_colorbar(GREY, np.ones((2, 2))).size
    assert (np.asarray(without)[448:] == 255).all()
    assert not (scale_of(np.zeros((2, 2)))[0] == 255).all()


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.032, "3.20%"), (0.0665, "6.65%"), (1 / 196, "0.510%"), (0.099996, "10.0%"), (1, "100%"), (0, "0.00%")],
)
def test_percentages_have_three_digits_and_no_space(share, said):
    assert percent(share) == said


def test_the_words_below_the_reference_points_are_near_them():
    image = Image.new("RGB", (448, 448), (90, 160, 90))
    pixels = np.asarray(attention_panel(image, [((20, 30), np.full((14, 14), 0.01))]))
    below = np.flatnonzero((pixels[16 + 448 :, 16 : 16 + 448] < 128).any(axis=(1, 2)))
    assert 0 < below.min() <= below.max() < 1.75 * caption_size(448)


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
