"""Positions for another grid: against SciPy's splines, timm's bicubic, torch's bilinear, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline, make_interp_spline
from scipy.optimize import brentq
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import interpolate

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.resize_positions import (
    resize_bias_table,
    resize_positions,
    source_offsets,
    spline_weights,
    step_ratio,
)

QUOTED = {24: 1.090307, 32: 1.134918, 40: 1.168504}  # what the release's bisection finds at 384, 512 and 640 pixels


def random_table(side: int, heads: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2 * side - 1) ** 2 + 3, heads, generator=generator, dtype=torch.float64).to(dtype)


def square(side: int) -> tuple[int, int]:
    return side, side


def by_hand_offsets(source: int, target: int) -> np.ndarray:
    """The geometric coordinates, q by Brent's method instead of bisection."""

    def missing(q: float) -> float:
        return sum(q**i for i in range(source - 1)) - (target - 1)

    q = 1.01 if missing(1.01) >= 0 else brentq(missing, 1.01, 1.5, xtol=1e-15)
    outward = [sum(q**i for i in range(steps)) for steps in range(1, source)]
    return np.array([*(-x for x in reversed(outward)), 0.0, *outward])


def by_scipy(table: torch.Tensor, source: int, target: int) -> torch.Tensor:
    offsets = by_hand_offsets(source, target)
    wanted = np.arange(1 - target, target, dtype=np.float64)
    side = 2 * source - 1
    heads = [
        RectBivariateSpline(offsets, offsets, head.reshape(side, side), kx=3, ky=3, s=0)(wanted, wanted).ravel()
        for head in table[:-3].double().numpy().T
    ]
    return torch.from_numpy(np.stack(heads, axis=1))


# The geometry


@pytest.mark.parametrize(("target", "quoted"), QUOTED.items())
def test_step_ratio_is_the_release_s_but_exact(target, quoted):
    q = step_ratio(14, target)
    assert q == pytest.approx(quoted, abs=2e-6)
    assert sum(q**i for i in range(13)) == pytest.approx(target - 1, abs=1e-12)


@pytest.mark.parametrize(("target", "quoted"), QUOTED.items())
def test_bisection_that_stops_at_a_millionth_finds_the_quoted_ratios(target, quoted):
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (q**13 - 1) / (q - 1) > target - 1 else (q, high)
    assert round(q, 6) == quoted
    assert step_ratio(14, target) == pytest.approx(q, abs=1e-6 + 1e-12)


def test_step_ratio_by_hand():
    assert step_ratio(4, 5) == pytest.approx((13**0.5 - 1) / 2, abs=1e-15)  # 1 + q + q^2 = 4
    offsets = source_offsets(4, 5)
    assert offsets.dtype == torch.float64
    np.testing.assert_allclose(offsets, [-4, -2.302775637732, -1, 0, 1, 2.302775637732, 4], atol=1e-12)


@pytest.mark.parametrize(("source", "target"), [(14, 13), (14, 7), (14, 1), (3, 2), (40, 41)])
def test_step_ratio_stays_at_its_bound_where_less_is_asked(source, target):
    assert step_ratio(source, target) == 1.01
    assert source_offsets(source, target)[-1] > target - 1


# The spline


@pytest.mark.parametrize("target", [24, 32, 40])
def test_bias_table_agrees_with_fitpack_s_tensor_spline(target):
    table = random_table(14, heads=4, seed=target)
    resized = resize_bias_table(table, square(14), square(target))
    assert resized.shape == ((2 * target - 1) ** 2 + 3, 4)
    torch.testing.assert_close(resized[:-3], by_scipy(table, 14, target), atol=1e-10, rtol=0)
    assert torch.equal(resized[-3:], table[-3:])


@pytest.mark.parametrize(("source", "target"), [(14, 7), (14, 13), (14, 1), (3, 2), (4, 5), (8, 33), (40, 41)])
def test_bias_table_agrees_with_fitpack_between_other_grids(source, target):
    table = random_table(source, heads=2, seed=source)
    resized = resize_bias_table(table, square(source), square(target))
    torch.testing.assert_close(resized[:-3], by_scipy(table, source, target), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("source", "target"), [(14, 24), (14, 40), (14, 6), (3, 2), (5, 8)])
def test_spline_weights_are_not_a_knot_splines_of_unit_vectors(source, target):
    spline = make_interp_spline(by_hand_offsets(source, target), np.eye(2 * source - 1), k=3)
    by_hand = spline(np.arange(1 - target, target))
    np.testing.assert_allclose(spline_weights(source, target), by_hand, atol=1e-11)


def test_bias_table_of_a_cubic_is_that_cubic():
    """A not-a-knot spline reproduces polynomials of degree 3; a natural one does not."""
    offsets, wanted = source_offsets(14, 24), torch.arange(-23, 24, dtype=torch.float64)

    def surface(at: torch.Tensor) -> torch.Tensor:
        x, y = at[:, None] / 23, at[None, :] / 23
        return (1 - 2 * x + 3 * x**2 - x**3) * (0.5 + y - y**3)

    table = torch.cat((surface(offsets).flatten(), torch.zeros(3, dtype=torch.float64))).unsqueeze(1)
    resized = resize_bias_table(table, square(14), square(24))
    torch.testing.assert_close(resized[:-3, 0].reshape(47, 47), surface(wanted), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bias_table_keeps_its_dtype_and_its_values_at_shared_offsets(dtype):
    table = random_table(14, dtype=dtype)
    resized = resize_bias_table(table, square(14), square(24))
    assert resized.dtype == dtype
    middle = slice(12, 15), slice(12, 15)  # offsets -1, 0, 1 of -13 .. 13
    shared = resized[:-3].reshape(47, 47, 3)[22:25, 22:25]
    tolerance = 1e-14 if dtype == torch.float64 else 0
    torch.testing.assert_close(shared, table[:-3].reshape(27, 27, 3)[middle], atol=tolerance, rtol=0)
    torch.testing.assert_close(resized[:-3].double(), by_scipy(table, 14, 24), atol=1e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("grid", [(14, 14), (2, 2), (1, 1), (3, 5)])
def test_bias_table_of_the_same_grid_is_left_alone(grid):
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, 2)
    assert resize_bias_table(table, grid, grid) is table


@settings(max_examples=25, deadline=None)
@given(side=st.integers(3, 9), more=st.integers(-6, 12), seed=st.integers(0, 99))
def test_bias_table_resize_keeps_symmetry_and_constants(side, more, seed):
    target = max(1, side + more)
    if target > int((1.5 ** (side - 1) - 1) / 0.5) + 1:
        target = side
    offsets = random_table(side, heads=2, seed=seed)[:-3].reshape(2 * side - 1, 2 * side - 1, 2)
    mirrored = offsets + offsets.flip(0)  # the same up as down
    even = mirrored + mirrored.flip(1)
    for grid, same in (
        (mirrored, lambda out: out.flip(0)),
        (even, lambda out: out.flip(0, 1)),
        (even + even.transpose(0, 1), lambda out: out.transpose(0, 1)),
        (torch.full_like(even, 0.7), lambda out: torch.full_like(out, 0.7)),
    ):
        table = torch.cat((grid.flatten(0, 1), torch.zeros(3, 2, dtype=torch.float64)))
        out = resize_bias_table(table, square(side), square(target))[:-3].unflatten(0, (2 * target - 1, -1))
        torch.testing.assert_close(out, same(out), atol=1e-11, rtol=0)


# What cannot be done


@pytest.mark.parametrize(("source", "target"), [((3, 4), (6, 8)), ((4, 4), (4, 5)), ((3, 4), (4, 4)), ((3, 4), (4, 3))])
def test_bias_table_between_grids_that_are_not_square_is_refused_with_a_way_out(source, target):
    table = torch.zeros((2 * source[0] - 1) * (2 * source[1] - 1) + 3, 2)
    with pytest.raises(UsageError, match="square grids only") as caught:
        resize_bias_table(table, source, target)
    assert f"{source[0]} x {source[1]} to {target[0]} x {target[1]}" in caught.value.message
    assert caught.value.hint.startswith("Give a square --size, finetune with --resize-positions bilinear, or take a")


@pytest.mark.parametrize(("source", "offsets"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("target", [1, 2, 3])
def test_bias_table_with_too_few_offsets_for_a_cubic_is_refused(source, offsets, target):
    if target != source:
        with pytest.raises(UsageError, match=f"{source} x {source} grid has {offsets} offsets a side"):
            resize_bias_table(torch.zeros(offsets**2 + 3, 2), square(source), square(target))


@pytest.mark.parametrize(("source", "most"), [(3, 3), (4, 5), (5, 9), (8, 33)])
def test_bias_table_stretches_until_the_ratio_would_pass_its_bound(source, most):
    table = random_table(source, heads=1)
    assert len(resize_bias_table(table, square(source), square(most))) == (2 * most - 1) ** 2 + 3
    with pytest.raises(UsageError, match=f"does not stretch to {most + 1} x {most + 1}") as caught:
        resize_bias_table(table, square(source), square(most + 1))
    assert f"{most} x {most} at most" in caught.value.message


@pytest.mark.parametrize("shape", [(52, 2), (729, 2), (733, 2), (732,)])
@pytest.mark.parametrize("target", [(14, 14), (24, 24)])
def test_bias_table_of_other_rows_than_its_grid_s_is_refused(shape, target):
    with pytest.raises(StorageError, match=r"a 14 x 14 grid needs 732 rows"):
        resize_bias_table(torch.zeros(shape), square(14), target)


# Absolute positions


@pytest.mark.parametrize(
    ("source", "target"),
    [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((4, 6), (9, 5)), ((3, 8), (4, 6)), ((1, 1), (2, 3))],
)
def test_positions_equal_timm_s_without_antialias(source, target):
    positions = torch.randn(1, 1 + source[0] * source[1], 16, generator=torch.Generator().manual_seed(1))
    resized = resize_positions(positions, source, target)
    theirs = resample_abs_pos_embed(positions, list(target), list(source), antialias=False)
    assert torch.equal(resized, theirs)
    assert torch.equal(resized[:, 0], positions[:, 0])


@pytest.mark.parametrize("down", [False, True])
def test_positions_by_hand_along_one_axis(down):
    """Two patches to four: centres at -1/4, 1/4, 3/4, 5/4; Keys' kernel of a = -3/4, borders repeated."""

    def kernel(x: float) -> float:
        x = abs(x)
        return 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)

    first, second = 3.0, 7.0
    expected = []
    for centre in (-0.25, 0.25, 0.75, 1.25):
        out_indices = range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3)
        expected.append(sum(kernel(centre - tap) * (first if tap <= 0 else second) for tap in out_indices))
    assert expected == pytest.approx([2.578125, 3.90625, 6.09375, 7.421875])
    grids = ((2, 1), (4, 1)) if down else ((1, 2), (1, 4))
    resized = resize_positions(torch.tensor([[[9.0], [first], [second]]]), *grids)
    torch.testing.assert_close(resized, torch.tensor([[[9.0], *([value] for value in expected)]]), atol=1e-6, rtol=0)


def test_positions_keep_their_dtype_and_the_same_grid_is_left_alone():
    positions = torch.randn(1, 17, 8)
    assert resize_positions(positions, (4, 4), (4, 4)) is positions
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        resized = resize_positions(positions.to(dtype), (4, 4), (2, 8))
        assert resized.dtype == dtype
        assert torch.equal(resized[:, 0], positions.to(dtype)[:, 0])
        by_float = resize_positions(positions.to(dtype).float(), (4, 4), (2, 8))
        torch.testing.assert_close(resized.float(), by_float, atol=1e-6, rtol=torch.finfo(dtype).eps)


# Bilinear

GRIDS = [((14, 14), (32, 32)), ((4, 6), (9, 5)), ((3, 8), (4, 6)), ((2, 2), (7, 7)), ((8, 8), (3, 3))]


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_bilinear_positions_are_torch_s_over_the_grid(source, target):
    positions = torch.randn(1, 1 + source[0] * source[1], 16, generator=torch.Generator().manual_seed(1))
    maps = positions[:, 1:].reshape(1, *source, 16).permute(0, 3, 1, 2).contiguous()
    by_torch = interpolate(maps, size=target, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    resized = resize_positions(positions, source, target, "bilinear")
    torch.testing.assert_close(resized, torch.cat((positions[:, :1], by_torch), dim=1), atol=1e-6, rtol=0)
    assert torch.equal(resized[:, 0], positions[:, 0])


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_bilinear_bias_table_is_torch_s_over_the_offsets(source, target):
    old, new = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (source, target))
    table = torch.randn(old[0] * old[1] + 3, 4, generator=torch.Generator().manual_seed(1))
    offsets = table[:-3].reshape(1, *old, 4).permute(0, 3, 1, 2).contiguous()
    by_torch = interpolate(offsets, size=new, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).reshape(-1, 4)
    resized = resize_bias_table(table, source, target, "bilinear")
    torch.testing.assert_close(resized, torch.cat((by_torch, table[-3:])), atol=1e-6, rtol=0)
    assert torch.equal(resized[-3:], table[-3:])


def test_bilinear_by_hand_along_one_axis():
    """Two patches to four: centres at -1/4, 1/4, 3/4, 5/4, those outside at the border."""
    resized = resize_positions(torch.tensor([[[9.0], [3.0], [7.0]]]), (1, 2), (1, 4), "bilinear")
    torch.testing.assert_close(resized, torch.tensor([[[9.0], [3.0], [4.0], [6.0], [7.0]]]))


def test_bilinear_keeps_the_dtype_and_leaves_the_same_grid_alone():
    table = random_table(4, dtype=torch.bfloat16)
    assert resize_bias_table(table, square(4), square(4), "bilinear") is table
    assert resize_bias_table(table, square(4), square(5), "bilinear").dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 16, 8), (17, 8), (2, 17, 8)])
def test_positions_of_another_grid_are_refused(shape):
    with pytest.raises(StorageError, match="a 4 x 4 grid needs 17"):
        resize_positions(torch.zeros(shape), (4, 4), (8, 8))
