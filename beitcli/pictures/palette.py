"""Colours that tell classes apart, as many as a mask has values, and the OKLab space in which colours are compared.

After Glasbey et al. (2007): each next colour is the one farthest from all before it, in OKLab (Ottosson 2020), where
equal distances look equal. The list is the same everywhere, so a class has one colour in all pictures.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_FIRST = np.array(  # of Okabe and Ito, but for yellow and black: strong, and told apart by the colour-blind
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 75, 148), (86, 180, 233), (213, 94, 0)], dtype=np.uint8
)
VOID = (150, 150, 150)  # of pixels without a class
_LIGHTNESS = (0.42, 0.9)  # of candidates: neither near black nor near white
_LEAST_CHROMA = 0.06  # greys are for what has no class
_RGB_TO_LMS = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_LMS_TO_LAB = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)


def to_oklab(colours: np.ndarray) -> np.ndarray:
    """Converts sRGB (..., 3) uint8 to OKLab (..., 3): lightness in [0, 1], then green to red, blue to yellow."""
    values = np.asarray(colours, dtype=np.float64) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(light @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Converts OKLab (..., 3) to sRGB (..., 3) uint8; what no screen shows is clipped."""
    light = ((np.asarray(lab) @ np.linalg.inv(_LMS_TO_LAB).T) ** 3) @ np.linalg.inv(_RGB_TO_LMS).T
    light = light.clip(0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


@cache
def class_colours() -> np.ndarray:
    """Returns the colours of the values 0 to 254 and, as 255, the grey of what has no class: (256, 3) uint8."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_oklab(candidates)
    is_clear = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    is_clear &= np.hypot(lab[:, 1], lab[:, 2]) >= _LEAST_CHROMA
    candidates, lab = candidates[is_clear], lab[is_clear]
    chosen = list(_FIRST)
    nearest = np.full(len(lab), np.inf)
    for colour in (np.array(VOID), *_FIRST):
        nearest = np.minimum(nearest, np.square(lab - to_oklab(colour)).sum(axis=1))
    while len(chosen) < 255:
        farthest = int(nearest.argmax())
        chosen.append(candidates[farthest])
        nearest = np.minimum(nearest, np.square(lab - lab[farthest]).sum(axis=1))
    return np.array([*chosen, VOID], dtype=np.uint8)


def ink_on(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns black or white, whichever is read more easily on a colour."""
    return (0, 0, 0) if float(to_oklab(np.array(colour))[0]) > 0.62 else (255, 255, 255)
