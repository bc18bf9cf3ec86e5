"""Draws an image of the `sample` dataset: a textured shape in front of a cluttered background, partly occluded.

Shapes are signed distance functions and textures on the unit square, so the content is the same at every size; the
pixel size only affects the smoothing of edges. Only operations that IEEE 754 rounds the same everywhere are used (no
vectorized sines, no matrix products), and only uniform random numbers. About 1.3 ms for 64x64.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

Plane = np.ndarray  # (H, W) float32, or broadcastable to it
Draws = np.random.Generator


@cache
def _grid(size: int) -> tuple[Plane, Plane]:
    """Pixel centres on the unit square: x (1, W) and y (H, 1)."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centres[None, :], centres[:, None]


def _between(draws: Draws, low: float, high: float) -> float:
    return low + (high - low) * draws.random()


def _turn(angle: float) -> tuple[float, float]:
    """Returns cosine and sine, rounded because C libraries differ in the last bits."""
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


# Signed distances, negative inside, in the shape's own units. `vary` is one uniform number in [0, 1).


def _disc(x: Plane, y: Plane, radius: float, cx: float = 0.0, cy: float = 0.0) -> Plane:
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - radius


def _box(x: Plane, y: Plane, half_width: float, half_height: float) -> Plane:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _polygon(x: Plane, y: Plane, corners: list[tuple[float, float]]) -> Plane:
    ax, ay = (np.array(column, np.float32)[:, None, None] for column in zip(*corners, strict=True))
    bx, by = np.roll(ax, -1, 0), np.roll(ay, -1, 0)
    ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    distance = np.sqrt(((px - ex * along) ** 2 + (py - ey * along) ** 2).min(0))
    level = np.where(ey == 0, np.float32(1), ey)
    crosses = ((ay > y) != (by > y)) & (px < ex * py / level)
    return np.where(np.logical_xor.reduce(crosses, 0), -distance, distance)


def _arrow(x: Plane, y: Plane, vary: float) -> Plane:
    shaft, neck = 0.22 + 0.14 * vary, -0.05
    head = [(1.0, 0.0), (neck, 0.8), (neck, shaft)]
    tail = [(-1.0, shaft), (-1.0, -shaft), (neck, -shaft), (neck, -0.8)]
    return _polygon(x, y, head + tail)


def _circle(x: Plane, y: Plane, vary: float) -> Plane:
    return _disc(x, y, 1.0)


def _crescent(x: Plane, y: Plane, vary: float) -> Plane:
    return np.maximum(_disc(x, y, 1.0), -_disc(x, y, 0.85, 0.45 + 0.15 * vary))


def _cross(x: Plane, y: Plane, vary: float) -> Plane:
    arm = 0.26 + 0.12 * vary
    return np.minimum(_box(x, y, 1.0, arm), _box(x, y, arm, 1.0))


def _flower(x: Plane, y: Plane, vary: float) -> Plane:
    petals = [_disc(x, y, 0.36 + 0.06 * vary, *(0.62 * c for c in _turn(i * math.tau / 5))) for i in range(5)]
    return np.minimum.reduce([_disc(x, y, 0.4), *petals])


def _heart(x: Plane, y: Plane, vary: float) -> Plane:
    u, v = (x + y) * np.float32(0.70710677), (y - x) * np.float32(0.70710677)
    lobes = np.minimum(_disc(u, v, 0.6, 0.0, -0.6), _disc(u, v, 0.6, -0.6, 0.0))
    return np.minimum(_box(u, v, 0.6, 0.6), lobes)


def _ring(x: Plane, y: Plane, vary: float) -> Plane:
    half_width = 0.16 + 0.1 * vary
    return np.abs(_disc(x, y, 1.0 - half_width)) - half_width


def _square(x: Plane, y: Plane, vary: float) -> Plane:
    return _box(x, y, 1.0, 1.0)


def _star(x: Plane, y: Plane, vary: float) -> Plane:
    inner = 0.4 + 0.08 * vary
    turns = [_turn(i * math.tau / 10) for i in range(10)]
    return _polygon(x, y, [(c, s) if i % 2 == 0 else (c * inner, s * inner) for i, (c, s) in enumerate(turns)])


def _triangle(x: Plane, y: Plane, vary: float) -> Plane:
    return _polygon(x, y, [_turn(i * math.tau / 3 - math.pi / 2) for i in range(3)])


# Each shape with its mean area in its own units, so that all classes are drawn with equal area.
SHAPES: dict[str, tuple[Callable[[Plane, Plane, float], Plane], float]] = {
    "arrow": (_arrow, 1.39),
    "circle": (_circle, 3.14),
    "crescent": (_crescent, 1.44),
    "cross": (_cross, 2.15),
    "flower": (_flower, 2.56),
    "heart": (_heart, 2.57),
    "ring": (_ring, 2.07),
    "square": (_square, 4.0),
    "star": (_star, 1.3),
    "triangle": (_triangle, 1.3),
}


# Textures: values in [0, 1] that interpolate between two colors.


def _noise(draws: Draws, size: int, cells: int) -> Plane:
    """Smooth noise (H, W) with about `cells` maxima per side; Pillow's 8-bit resize uses integer arithmetic."""
    knots = (draws.random((cells + 2, cells + 2)) * 256).astype(np.uint8)
    box = (1.0, 1.0, cells + 1.0, cells + 1.0)
    smooth = Image.fromarray(knots).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth) * np.float32(1 / 255)


def _wave(phase: Plane) -> Plane:
    """Triangle wave of period 1 between 0 and 1."""
    return np.abs((phase - np.floor(phase)) * 2 - 1)


def _gradient(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    return np.clip(0.5 + (x - 0.5) + 0.2 * (_noise(draws, size, 3) - 0.5), 0, 1)


def _clouds(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    coarse = int(_between(draws, 3, 6))
    return 0.65 * _noise(draws, size, coarse) + 0.35 * _noise(draws, size, coarse * 3)


def _stripes(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    frequency, width = _between(draws, 4, 9), _between(draws, 0.35, 0.65)
    return np.clip((_wave(x * frequency + draws.random()) - width) * (16 / frequency) + 0.5, 0, 1)


def _grain(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    frequency = _between(draws, 4, 8)
    return _wave(x * frequency + _noise(draws, size, 3) * _between(draws, 0.8, 2.0))


def _checks(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    frequency = _between(draws, 2.5, 5)
    columns = np.clip((_wave(x * frequency + draws.random()) - 0.5) * (16 / frequency), -0.5, 0.5)
    rows = np.clip((_wave(y * frequency + draws.random()) - 0.5) * (16 / frequency), -0.5, 0.5)
    return 0.5 + 2 * columns * rows


def _dots(draws: Draws, size: int, x: Plane, y: Plane) -> Plane:
    frequency, radius = _between(draws, 4, 7), _between(draws, 0.3, 0.5)
    from_centre = _wave(x * frequency + draws.random()) ** 2 + _wave(y * frequency + draws.random()) ** 2
    return np.clip((radius - from_centre) * (12 / frequency) + 0.5, 0, 1)


TEXTURES = (_gradient, _clouds, _stripes, _grain, _checks, _dots)


def _palette(draws: Draws, hue: float, value: float, contrast: float) -> list[np.ndarray]:
    """Returns a dark and a light color (3,) of similar hue."""
    saturation, half = _between(draws, 0.2, 0.85), _between(draws, 0.25, 0.5) * contrast
    values = (max(0.05, value - half), min(1.0, value + half))
    hues = ((hue - 0.05) % 1, (hue + 0.05) % 1)
    return [np.array(colorsys.hsv_to_rgb(h, saturation, v), np.float32) for h, v in zip(hues, values, strict=True)]


def _surface(draws: Draws, size: int, hue: float, value: float, contrast: float) -> np.ndarray:
    """Draws a texture (H, W, 3) of two colors at a random angle."""
    x, y = _grid(size)
    cosine, sine = _turn(draws.random() * math.tau)
    u, v = (x - 0.5) * cosine + (y - 0.5) * sine, (y - 0.5) * cosine - (x - 0.5) * sine
    texture = TEXTURES[int(draws.random() * len(TEXTURES))](draws, size, u + 0.5, v + 0.5)
    dark, light = _palette(draws, hue, value, contrast)
    return dark + texture[..., None] * (light - dark)


def _cover(canvas: np.ndarray, distance: Plane, surface: np.ndarray) -> Plane:
    """Paints `surface` where `distance` (H, W) is negative. Returns the coverage (H, W) in [0, 1]."""
    coverage = np.clip(0.5 - distance * len(canvas), 0, 1)
    canvas += coverage[..., None] * (surface - canvas)
    return coverage


def _shade(canvas: np.ndarray, distance: Plane, reach: float, depth: float) -> None:
    """Draws a shadow around a layer, before the layer itself is painted."""
    canvas *= (1 - depth * np.clip(1 - distance / reach, 0, 1) ** 2)[..., None]


def _band(draws: Draws, size: int, cx: float, cy: float, half_width: float) -> Plane:
    """Distance to a slightly wavy band through (cx, cy), across the whole image."""
    x, y = _grid(size)
    cosine, sine = _turn(draws.random() * math.tau)
    across = (x - cx) * cosine + (y - cy) * sine
    return np.abs(across + 0.06 * (_noise(draws, size, 3) - 0.5)) - half_width


def _blob(draws: Draws, size: int, cx: float, cy: float, radius: float) -> Plane:
    """Distance to a blob with an irregular outline."""
    x, y = _grid(size)
    return _disc(x, y, radius, cx, cy) + radius * 1.8 * (_noise(draws, size, 6) - 0.5)


def _background(draws: Draws, size: int, hue: float, value: float) -> np.ndarray:
    canvas = _surface(draws, size, hue, value, 0.3)
    if draws.random() < 0.4:
        x, y = _grid(size)
        cosine, sine = _turn(_between(draws, -0.5, 0.5))
        horizon = (y - _between(draws, 0.3, 0.7)) * cosine + (x - 0.5) * sine + 0.15 * (_noise(draws, size, 4) - 0.5)
        _cover(canvas, horizon, _surface(draws, size, hue + _between(draws, -0.15, 0.15), value, 0.2))
    for _ in range(int(draws.random() * 3)):
        draw = _band if draws.random() < 0.5 else _blob
        extent = _between(draws, 0.015, 0.05) if draw is _band else _between(draws, 0.06, 0.16)
        distance = draw(draws, size, draws.random(), draws.random(), extent)
        _cover(canvas, distance, _surface(draws, size, draws.random(), value + _between(draws, -0.2, 0.2), 0.2))
    return canvas


def draw_shape(draws: Draws, shape: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one image.

    Args:
        draws: Random generator; the image depends only on it, `shape` and `size`.
        shape: A key of SHAPES.
        size: Side in pixels.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) bool, True where the shape is visible.
    """
    x, y = _grid(size)
    hue = draws.random()
    lighter = draws.random() < 0.75
    ground_value, shape_value = (0.38, 0.82) if lighter else (0.82, 0.4)
    canvas = _background(draws, size, hue, ground_value)

    distance_of, area = SHAPES[shape]
    radius = math.sqrt(_between(draws, 0.12, 0.28) / area)
    cx, cy = _between(draws, 0.38, 0.62), _between(draws, 0.38, 0.62)
    cosine, sine = _turn(_between(draws, -0.45, 0.45))
    stretch = _between(draws, 0.88, 1.13)
    u = ((x - cx) * cosine + (y - cy) * sine) * (stretch / radius)
    v = ((y - cy) * cosine - (x - cx) * sine) * (1 / stretch / radius)
    distance = distance_of(u, v, draws.random()) * radius
    surface = _surface(draws, size, hue + _between(draws, 0.2, 0.8), shape_value, 0.35)
    _shade(canvas, distance, 0.07, 0.45)
    seen = _cover(canvas, distance, surface) >= 0.5

    if draws.random() < 0.6:
        away, (cosine, sine) = _between(draws, 0.1, 0.24), _turn(draws.random() * math.tau)
        draw, extent = (_band, 0.05) if draws.random() < 0.5 else (_blob, 0.11)
        distance = draw(draws, size, cx + away * cosine, cy + away * sine, extent * _between(draws, 0.7, 1.2))
        _shade(canvas, distance, 0.05, 0.35)
        cover = _surface(draws, size, draws.random(), _between(draws, 0.4, 0.8), 0.25)
        seen &= _cover(canvas, distance, cover) < 0.5

    light = 1 + _between(draws, -0.3, 0.3) * (x - 0.5) + _between(draws, -0.3, 0.3) * (y - 0.5)
    canvas *= light[..., None]
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), seen
