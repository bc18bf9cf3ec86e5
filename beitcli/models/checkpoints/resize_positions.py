"""Resizes position encodings to another grid, as the release does or bilinearly (`beitcli.config.resizing`).

The release resizes relative bias tables by a cubic spline over geometric steps, and absolute positions bicubic.

The table of a grid of side h has a bias for each vertical and horizontal offset -(h-1) .. h-1. The release places these
offsets at 0, ±1, ±(1 + q), ±(1 + q + q^2), ..., dense for near patches, with the ratio q for which the last step
reaches the outermost offset of the target. It evaluates the interpolating cubic spline at the target's integer offsets:

    sum_{i < h-1} q^i = H - 1,   1.01 <= q <= 1.5        14 -> 24: 1.090308   14 -> 32: 1.134917   14 -> 40: 1.168503
    new = W @ table @ W^T                                W (2H-1, 2h-1), a spline through each unit vector

The release bisects q to within 1e-6, this file to the last bit. A smaller target would need q below 1.01, and q stays
at that bound: the offsets are then nearly the integers, so the middle of the table is cropped. They always cover the
target's offsets, because steps of ratio 1.01 reach further than integer steps. In float64; milliseconds per table.

Bilinear (paper, Table 14) is torch's `interpolate` with `align_corners=False` and without antialiasing, over the patch
grid or over the table's (2h-1, 2w-1) offsets; it takes grids of any shape.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

from beitcli.config.resizing import Resizing
from beitcli.errors import StorageError, UsageError

LEAST_RATIO, LARGEST_RATIO = 1.01, 1.5
LEAST_GRID = 3  # 5 offsets; a 2 x 2 grid has 3, but a cubic spline needs 4
EXTRA_ROWS = 3  # class to patch, patch to class, class to class


def resize_bias_table(
    table: torch.Tensor, source: tuple[int, int], target: tuple[int, int], how: Resizing = "release"
) -> torch.Tensor:
    """Resizes a relative position bias table to another grid.

    Args:
        table: ((2h-1)(2w-1) + 3, heads).
        source: Patch grid (h, w) of the table.
        target: New patch grid (H, W).
        how: The release's cubic spline, or bilinear.

    Returns:
        ((2H-1)(2W-1) + 3, heads) in the table's dtype, with the last three rows copied; the table itself if the grids
        are equal.

    Raises:
        StorageError: The number of rows does not fit the source grid.
        UsageError: For the spline, a grid is not square, the source is smaller than 3 x 3, or the target so large that
            q exceeds 1.5.
    """
    rows = (2 * source[0] - 1) * (2 * source[1] - 1) + EXTRA_ROWS
    if table.ndim != 2 or len(table) != rows:
        raise StorageError(
            f"The relative position bias table is {_shape(table)}, but a {_grid(source)} grid needs {rows} rows.",
            "Check that the checkpoint's config.json gives the image and patch size it was trained with.",
        )
    if source == target:
        return table
    if how == "bilinear":
        offsets = table[:-EXTRA_ROWS].unflatten(0, (2 * source[0] - 1, 2 * source[1] - 1))
        resized = _interpolated(offsets, (2 * target[0] - 1, 2 * target[1] - 1), "bilinear")
        return torch.cat((resized.flatten(0, 1), table[-EXTRA_ROWS:]))
    if source[0] != source[1] or target[0] != target[1]:
        raise UsageError(
            f"Relative position bias tables resize between square grids only, not {_grid(source)} to {_grid(target)}.",
            "Give a square --size, finetune with --resize-positions bilinear, or take a model with absolute positions.",
        )
    weights = spline_weights(source[0], target[0])
    side = 2 * source[0] - 1
    offsets = table[:-EXTRA_ROWS].to("cpu", torch.float64).reshape(side, side, -1)
    resized = torch.einsum("ti,ijh,uj->tuh", weights, offsets, weights).flatten(0, 1)
    return torch.cat((resized.to(table), table[-EXTRA_ROWS:]))


def resize_positions(
    positions: torch.Tensor, source: tuple[int, int], target: tuple[int, int], how: Resizing = "release"
) -> torch.Tensor:
    """Resizes absolute position embeddings to another grid, without antialiasing.

    Args:
        positions: (1, 1 + hw, D), the class token's first.
        source: Patch grid (h, w) of the position embeddings.
        target: New patch grid (H, W).
        how: Bicubic as in the release, or bilinear.

    Returns:
        (1, 1 + HW, D), with the class token's row copied; the input itself if the grids are equal.

    Raises:
        StorageError: The shape does not fit the source grid.
    """
    if positions.ndim != 3 or positions.shape[:2] != (1, 1 + source[0] * source[1]):
        raise StorageError(
            f"The positions are {_shape(positions)}, but a {_grid(source)} grid needs {1 + source[0] * source[1]}.",
            "Check that the checkpoint's config.json gives the image and patch size it was trained with.",
        )
    if source == target:
        return positions
    patches = positions[0, 1:].unflatten(0, source)
    resized = _interpolated(patches, target, "bilinear" if how == "bilinear" else "bicubic")
    return torch.cat((positions[:, :1], resized.flatten(0, 1)[None]), dim=1)


def _interpolated(rows: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Maps (h, w, D) to (H, W, D) by torch's `interpolate`, in fp32 at least; the dtype is kept."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    resized = interpolate(exact.movedim(-1, 0)[None], size=size, mode=mode, align_corners=False, antialias=False)
    return resized[0].movedim(0, -1).to(rows)


def step_ratio(source: int, target: int) -> float:
    """Solves sum_{i < source-1} q^i = target - 1 for q; 1.01 if the solution is smaller.

    Args:
        source: Side of the square source grid in patches, 3 or more.
        target: Side of the square target grid in patches.

    Raises:
        UsageError: The source is below 3, or q exceeds 1.5.
    """
    if source < LEAST_GRID:
        raise UsageError(
            f"A bias table of a {source} x {source} grid has {2 * source - 1} offsets a side; its spline needs 4.",
            "Keep the model's own size, or use a model with absolute positions.",
        )
    steps, reach = source - 1, target - 1
    if _reached(LARGEST_RATIO, steps) < reach:
        most = int(_reached(LARGEST_RATIO, steps)) + 1
        raise UsageError(
            f"A bias table of a {source} x {source} grid does not stretch to {target} x {target} patches: "
            f"{most} x {most} at most.",
            f"Give a --size of at most {most} times the patch size, or use a model with absolute positions.",
        )
    low, high = LEAST_RATIO, LARGEST_RATIO
    if _reached(low, steps) >= reach:
        return low
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if _reached(middle, steps) > reach else (middle, high)
    return low


def source_offsets(source: int, target: int) -> torch.Tensor:
    """Returns the positions of a table's offsets: (2 source - 1,) float64, ascending, symmetric about 0."""
    powers = step_ratio(source, target) ** torch.arange(source - 1, dtype=torch.float64)
    outward = powers.cumsum(0)
    return torch.cat((-outward.flip(0), torch.zeros(1, dtype=torch.float64), outward))


def spline_weights(source: int, target: int) -> torch.Tensor:
    """Returns the matrix that resizes one axis: (2 target - 1, 2 source - 1) float64; each row sums to 1."""
    knots = source_offsets(source, target)
    # The outermost knot equals the outermost offset up to rounding.
    points = torch.arange(1 - target, target, dtype=torch.float64).clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, points).clamp(1, len(knots) - 1)
    left = right - 1
    width = knots[right] - knots[left]
    a, b = (knots[right] - points) / width, (points - knots[left]) / width
    unit, bend = torch.eye(len(knots), dtype=torch.float64), _second_derivatives(knots)
    line = a[:, None] * unit[left] + b[:, None] * unit[right]
    curve = (a**3 - a)[:, None] * bend[left] + (b**3 - b)[:, None] * bend[right]
    return line + curve * (width**2 / 6)[:, None]


def _second_derivatives(knots: torch.Tensor) -> torch.Tensor:
    """Second derivatives of the not-a-knot cubic splines through unit vectors: (s, s), [i, j] at knot i of spline j."""
    size, gaps = len(knots), knots.diff()
    system, values = torch.zeros(2, size, size, dtype=torch.float64)
    for i in range(1, size - 1):  # the first derivative is continuous
        before, after = gaps[i - 1], gaps[i]
        system[i, i - 1], system[i, i], system[i, i + 1] = before / 6, (before + after) / 3, after / 6
        values[i, i - 1], values[i, i], values[i, i + 1] = 1 / before, -1 / before - 1 / after, 1 / after
    for end, i in ((0, 1), (size - 1, size - 2)):  # so is the third, at the last knot but one
        outer, inner = (gaps[0], gaps[1]) if end == 0 else (gaps[-1], gaps[-2])
        system[end, end], system[end, i], system[end, 2 * i - end] = inner, -(outer + inner), outer
    return torch.linalg.solve(system, values)


def _reached(ratio: float, steps: int) -> float:
    return (ratio**steps - 1) / (ratio - 1)


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
