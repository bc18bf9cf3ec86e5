"""JPEGs as large and as dear to decode as ImageNet's, drawn here: 500 x 375 pixels, quality 90, about 110 kB.

Each is a colour gradient, plus noise of eight octaves whose amplitude falls with its frequency as photographs' does,
plus grain; the three channels share most of the noise. Numbered draws, so the same seed makes the same files.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

_QUALITY, _OCTAVES, _SHARED = 90, 8, 0.8
_AMPLITUDE, _FALL, _GRAIN = 50.0, 0.9, 15.0  # levels of 255; chosen so that a file has about 110 kB


def draw(number: int, seed: int, size: tuple[int, int]) -> Image.Image:
    """Image `number`, `size` (width, height)."""
    rng = np.random.default_rng((seed, number))
    width, height = size
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    slopes = rng.normal(0, 40, (2, 3))
    pixels = 128 + across[None, :, None] * slopes[0] + down[..., None] * slopes[1] + rng.normal(0, 25, 3)
    shared = noise(rng, width, height)
    for channel in range(3):
        pixels[..., channel] += _SHARED * shared + (1 - _SHARED) * noise(rng, width, height)
    pixels += rng.normal(0, _GRAIN, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def noise(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(height, width): octaves of random grids, enlarged smoothly."""
    total = np.zeros((height, width))
    amplitude = _AMPLITUDE
    for octave in range(1, _OCTAVES + 1):
        columns, rows = min(width, 2**octave + 1), min(height, 2**octave)
        grid = Image.fromarray(rng.normal(0, amplitude, (rows, columns)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        amplitude *= _FALL
    return total


def save(number: int, folder: Path, seed: int, size: tuple[int, int]) -> int:
    """The bytes of the file."""
    path = folder / f"{number:05d}.jpg"
    draw(number, seed, size).save(path, quality=_QUALITY)
    return path.stat().st_size


def make_jpegs(folder: Path, count: int, seed: int, size: tuple[int, int], processes: int) -> float:
    """Draws `count` files in parallel; their mean bytes. Before CUDA is used: processes are forked."""
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(save, folder=folder, seed=seed, size=size)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        return sum(pool.map(work, range(count), chunksize=8)) / count
