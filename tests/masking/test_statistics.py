"""Blockwise statistics against those measured on the release's generator (20,000 masks), and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from beitcli.errors import UsageError
from beitcli.masking import keyed_mask, make_masking
from beitcli.masking.statistics import count_components, mask_statistics
from beitcli.runtime.compute.keyed_rng import keyed_generator

COUNT = 4000
RELEASE_COUNT = 20_000
BLOCK_COUNTS = [0.011, 0.124, 0.225, 0.267, 0.204, 0.112, 0.041, 0.013]  # P(1) to P(8)
SIZES = {75: 0.666, 74: 0.233, 73: 0.049, 72: 0.035, 71: 0.005, 70: 0.008}
QUADRANT = np.array(
    [
        [0.042, 0.083, 0.119, 0.148, 0.169, 0.183, 0.190],
        [0.083, 0.158, 0.224, 0.278, 0.316, 0.340, 0.353],
        [0.119, 0.224, 0.314, 0.385, 0.436, 0.468, 0.484],
        [0.148, 0.278, 0.385, 0.468, 0.527, 0.564, 0.582],
        [0.169, 0.316, 0.436, 0.527, 0.590, 0.632, 0.651],
        [0.183, 0.340, 0.468, 0.564, 0.632, 0.675, 0.696],
        [0.190, 0.353, 0.484, 0.582, 0.651, 0.696, 0.715],
    ]
)


def sampling_error(sd):
    """Standard error of the difference between our mean and the release's."""
    return sd * np.sqrt(1 / COUNT + 1 / RELEASE_COUNT)


@pytest.fixture(scope="module")
def unfilled():
    generator = make_masking("blockwise", (14, 14), 75)
    draws = [generator.place_blocks(keyed_generator(0, "mask", 0, index)) for index in range(COUNT)]
    return np.array([mask for mask, _ in draws]), np.array([len(blocks) for _, blocks in draws])


def test_blocks_hide_as_many_as_the_release(unfilled):
    sizes = unfilled[0].sum((1, 2))
    assert sizes.max() == 75
    assert abs(sizes.mean() - 74.473) < 4 * sampling_error(0.989)
    assert abs(sizes.std() - 0.989) < 0.1
    for size, probability in SIZES.items():
        tolerance = 4 * sampling_error(np.sqrt(probability * (1 - probability))) + 0.0005  # the table is rounded
        assert abs((sizes == size).mean() - probability) < tolerance


def test_block_counts_are_those_of_the_release(unfilled):
    counts = unfilled[1]
    assert abs(counts.mean() - 4.11) < 4 * sampling_error(1.46) + 0.005
    assert abs(counts.std() - 1.46) < 0.07
    for number, probability in enumerate(BLOCK_COUNTS, start=1):
        tolerance = 4 * sampling_error(np.sqrt(probability * (1 - probability))) + 0.0005
        assert abs((counts == number).mean() - probability) < tolerance


def test_blocks_hang_together_as_in_the_release(unfilled):
    masks = unfilled[0]
    left, right = masks[:, :, :-1], masks[:, :, 1:]
    per_mask = (left & right).sum((1, 2)) / left.sum((1, 2))
    assert abs((left & right).sum() / left.sum() - 0.862) < 4 * sampling_error(per_mask.std()) + 0.0005
    components = count_components(masks)
    assert abs(components.mean() - 1.44) < 4 * sampling_error(components.std()) + 0.005


def test_position_probability_is_that_of_the_release(unfilled):
    top = np.concatenate([QUADRANT, QUADRANT[:, ::-1]], axis=1)
    table = np.concatenate([top, top[::-1]])
    error = (unfilled[0].mean(0) - table) / sampling_error(np.sqrt(table * (1 - table)))
    assert np.abs(error).max() < 5
    assert np.sqrt(np.mean(error**2)) < 1.5


def test_mask_statistics_agree_with_the_masks_themselves():
    generator = make_masking("blockwise", (6, 7), 17, min_block=4)
    report = mask_statistics(generator, 1200, seed=5, epoch=2)
    masks = np.array([keyed_mask(generator, 5, 2, index) for index in range(1200)])
    assert list(report) == ["masks", "grid", "num_masked", "position_probability", "blocks", "histograms"]
    assert json.loads(json.dumps(report)) == report
    assert report["masks"] == 1200
    assert report["grid"] == [6, 7]
    assert report["num_masked"] == {"mean": 17.0, "min": 17, "max": 17}
    assert np.allclose(report["position_probability"], masks.mean(0))
    assert report["blocks"]["components"] == pytest.approx(count_components(masks).mean())
    assert report["blocks"]["right_neighbour_masked"] == pytest.approx(
        (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    )


def test_random_masks_have_the_neighbours_of_chance():
    report = mask_statistics(make_masking("random", (14, 14), 75), 2000, seed=0)
    assert report["blocks"]["mean"] == 0
    assert report["blocks"]["right_neighbour_masked"] == pytest.approx(74 / 195, abs=0.005)
    assert report["blocks"]["components"] == pytest.approx(25.7, abs=0.3)


def test_mask_statistics_of_one_column_have_no_right_neighbours():
    report = mask_statistics(make_masking("blockwise", (5, 1), 2), 10, seed=0)
    assert report["blocks"]["right_neighbour_masked"] is None


def test_mask_statistics_refuses_no_masks():
    with pytest.raises(UsageError, match="--stats 0"):
        mask_statistics(make_masking("random", (2, 2), 1), 0, seed=0)


def drawn(picture):
    return np.array([[cell == "#" for cell in row] for row in picture.split()])


@pytest.mark.parametrize(
    ("picture", "pieces"),
    [
        (".... .... ....", 0),
        ("#### #### ####", 1),
        ("#.#. .#.# #.#.", 6),
        ("##.. ..## ####", 2),
        ("#..# .##. #..#", 5),
    ],
)
def test_components_are_counted_by_hand(picture, pieces):
    assert count_components(drawn(picture)[None]).tolist() == [pieces]


def test_components_follow_a_spiral_and_do_not_cross_masks():
    spiral = drawn("####### ......# #####.# #...#.# #.###.# #.....# #######")
    combs = drawn("#.#.#.# #.#.#.# #.#.#.# #.#.#.# #.#.#.# #.#.#.# #######")
    assert count_components(np.stack([spiral, combs, ~combs, spiral])).tolist() == [1, 1, 3, 1]


def test_components_agree_with_flood_fill():
    masks = np.random.default_rng(0).random((60, 9, 11)) < 0.55
    assert count_components(masks).tolist() == [flood_fill_pieces(mask) for mask in masks]


def flood_fill_pieces(mask):
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    pieces = 0
    while left:
        pieces += 1
        stack = [left.pop()]
        while stack:
            row, column = stack.pop()
            for near in [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]:
                if near in left:
                    left.remove(near)
                    stack.append(near)
    return pieces
