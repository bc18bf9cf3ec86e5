"""Masks: exact counts, keyed draws, and the settings that are refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beitcli.errors import UsageError
from beitcli.masking import MASKINGS, keyed_mask, make_masking, num_masked_from
from beitcli.masking.blockwise import BlockwiseMasking


@given(data=st.data(), name=st.sampled_from(sorted(MASKINGS)), height=st.integers(1, 30), width=st.integers(1, 30))
def test_every_masking_hides_exactly_num_masked(data, name, height, width):
    num_masked = data.draw(st.integers(1, height * width))
    min_block = data.draw(st.integers(1, 2 * height * width))
    max_aspect = data.draw(st.floats(1, 50))
    generator = make_masking(name, (height, width), num_masked, min_block, max_aspect)
    mask = keyed_mask(generator, data.draw(st.integers(0, 2**63)), 0, 0)
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    assert mask.sum() == num_masked


@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 1000), share=st.floats(0.01, 1))
def test_blocks_stay_inside_and_make_the_mask(height, width, seed, share):
    num_masked = max(1, round(share * height * width))
    generator = make_masking("blockwise", (height, width), num_masked)
    mask, blocks = generator.place_blocks(np.random.default_rng(seed))
    painted = np.zeros((height, width), dtype=bool)
    for block in blocks:
        assert 0 <= block.top <= height - block.height
        assert 0 <= block.left <= width - block.width
        assert 1 <= block.height <= max(1, height - 1)
        assert 1 <= block.width <= max(1, width - 1)
        before = painted.sum()
        painted[block.top : block.top + block.height, block.left : block.left + block.width] = True
        assert painted.sum() > before
    assert np.array_equal(mask, painted)
    assert mask.sum() <= num_masked


@pytest.mark.parametrize("name", sorted(MASKINGS))
def test_keyed_mask_depends_on_its_key_alone(name):
    generator = make_masking(name, (14, 14), 75)
    forwards = [keyed_mask(generator, 7, 3, index) for index in range(20)]
    np.random.default_rng(0).random(5)
    backwards = [keyed_mask(pickle.loads(pickle.dumps(generator)), 7, 3, index) for index in reversed(range(20))]
    assert np.array_equal(forwards, backwards[::-1])
    assert len({mask.tobytes() for mask in forwards}) == 20
    for other in [(8, 3, 0), (7, 4, 0)]:
        assert not np.array_equal(forwards[0], keyed_mask(generator, *other))


@pytest.mark.parametrize("name", sorted(MASKINGS))
def test_masking_ignores_the_global_generator(name):
    generator = make_masking(name, (14, 14), 75)
    masks = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        before = np.random.get_state()[1].tolist()  # noqa: NPY002
        masks.append(keyed_mask(generator, 0, 0, 0))
        assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert np.array_equal(*masks)


def test_keyed_masks_stay_what_they_were():
    """A change here changes what every resumed run hides."""
    mask = keyed_mask(make_masking("blockwise", (6, 6), 14, min_block=4), 0, 0, 0)
    assert ["".join("#" if hidden else "." for hidden in row) for row in mask] == [
        "......",
        ".##...",
        ".####.",
        "#####.",
        "..###.",
        "......",
    ]


def test_random_masking_hides_each_position_alike():
    generator = make_masking("random", (4, 5), 7)
    count = 4000
    probability = np.mean([keyed_mask(generator, 0, 0, index) for index in range(count)], axis=0)
    standard_error = np.sqrt(0.35 * 0.65 / count)
    assert np.abs(probability - 0.35).max() < 4.5 * standard_error


def test_fill_trims_what_is_too_much():
    generator = make_masking("random", (4, 4), 5)
    mask = generator.fill(np.ones((4, 4), dtype=bool), np.random.default_rng(0))
    assert mask.sum() == 5


def test_fill_adds_to_the_blocks_and_moves_none():
    generator = make_masking("blockwise", (14, 14), 75)
    added = 0
    for seed in range(50):
        placed, _ = generator.place_blocks(np.random.default_rng(seed))
        filled = generator.fill(placed.copy(), np.random.default_rng(seed))
        assert filled[placed].all()
        added += int(filled.sum() - placed.sum())
    assert added > 0


@pytest.mark.parametrize(
    ("ratio", "num_masked", "grid", "expected"),
    [
        (None, None, (14, 14), 78),
        (0.4, None, (14, 14), 78),
        (0.5, None, (2, 3), 3),
        (1.0, None, (2, 3), 6),
        (None, 75, (14, 14), 75),
        (None, 1, (1, 1), 1),
    ],
)
def test_num_masked_from_rounds_the_ratio(ratio, num_masked, grid, expected):
    assert num_masked_from(ratio, num_masked, grid) == expected


@pytest.mark.parametrize(
    ("ratio", "num_masked", "grid", "words"),
    [
        (0.0, None, (14, 14), "--ratio 0 "),
        (1.5, None, (14, 14), "--ratio 1.5 "),
        (float("nan"), None, (14, 14), "--ratio nan "),
        (0.001, None, (14, 14), "hides none"),
        (None, 0, (14, 14), "--num-masked 0 of 196"),
        (None, 300, (14, 14), "--num-masked 300 of 196"),
        (0.4, 75, (14, 14), "twice"),
        (0.4, None, (0, 14), "--grid 0,14"),
    ],
)
def test_num_masked_from_refuses_with_a_way_out(ratio, num_masked, grid, words):
    with pytest.raises(UsageError, match=words) as caught:
        num_masked_from(ratio, num_masked, grid)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_masked": 300}, "--num-masked 300 of 196 patches"),
        ({"num_masked": 0}, "--num-masked 0 of 196 patches"),
        ({"grid": (14, -1)}, "--grid 14,-1"),
        ({"min_block": 0}, "--min-block 0"),
        ({"max_aspect": 0.5}, "aspect of 0.5"),
        ({"max_aspect": float("inf")}, "aspect of inf"),
    ],
)
def test_make_masking_refuses_with_a_way_out(settings, words):
    with pytest.raises(UsageError, match=words) as caught:
        make_masking(**{"name": "blockwise", "grid": (14, 14), "num_masked": 75} | settings)
    assert caught.value.hint


def test_make_masking_suggests_the_name_meant():
    with pytest.raises(UsageError, match="--masking blokwise") as caught:
        make_masking("blokwise", (14, 14), 75)
    assert "Did you mean 'blockwise'?" in caught.value.hint


def test_min_block_above_num_masked_is_allowed():
    generator = BlockwiseMasking(grid=(14, 14), num_masked=4, min_block=16)
    assert generator(np.random.default_rng(0)).sum() == 4
