"""Colours that tell classes apart, as many as a mask has values, and the OKLab space in which colours are compared.

After Glasbey et al. (2007): each next colour is the one farthest from all before it, in OKLab (Ottosson 2020), where
equal distances look equal. The first 24 colours are for overlays and for all eyes: lightness counts about half, as
the photograph below changes it, and distances count, with half the weight, as the red- and the green-blind see them
(Machado et al. 2009). The list is the same everywhere, so a class has one colour in all pictures.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_FIRST = np.array([(0, 114, 178), (230, 159, 0)], dtype=np.uint8)  # blue and orange of Okabe and Ito
VOID = (150, 150, 150)  # of pixels without a class
_LIGHTNESS = (0.42, 0.9)  # of candidates: neither near black nor near white
_LEAST_CHROMA = 0.06  # greys are for what has no class
_FOR_OVERLAYS = 24  # colours
_AXES = np.array([0.55, 1, 1])  # weights of lightness and of both axes of colour among these
_BLIND_WEIGHT = 0.5  # of their distances as the colour-blind see them
_LEAST_STRONG = 0.1  # chroma of theirs
_BLIND = np.array(  # linear sRGB as the red-blind and the green-blind see it
    [
        [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
        [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
    ]
)
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
    return _lab_of_light(_light(colours))


def seen_by_the_colour_blind(colours: np.ndarray) -> np.ndarray:
    """Converts sRGB (..., 3) uint8 to OKLab as the red-blind and the green-blind see it: (2, ..., 3)."""
    light = _light(colours)
    return np.stack([_lab_of_light((light @ how.T).clip(0, 1)) for how in _BLIND])


def _light(colours: np.ndarray) -> np.ndarray:
    values = np.asarray(colours, dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab_of_light(light: np.ndarray) -> np.ndarray:
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
    chosen = _for_overlays(candidates, lab)
    nearest = np.full(len(lab), np.inf)
    for colour in (np.array(VOID), *chosen):
        nearest = np.minimum(nearest, np.square(lab - to_oklab(colour)).sum(axis=1))
    while len(chosen) < 255:
        farthest = int(nearest.argmax())
        chosen.append(candidates[farthest])
        nearest = np.minimum(nearest, np.square(lab - lab[farthest]).sum(axis=1))
    return np.array([*chosen, VOID], dtype=np.uint8)


def _for_overlays(candidates: np.ndarray, lab: np.ndarray) -> list[np.ndarray]:
    """Returns the first colours, (3,) uint8 each, from candidates (n, 3) with their OKLab."""
    is_strong = np.hypot(lab[:, 1], lab[:, 2]) >= _LEAST_STRONG
    candidates, lab = candidates[is_strong], lab[is_strong]
    blind, nearest, chosen = seen_by_the_colour_blind(candidates), np.full(len(lab), np.inf), list(_FIRST)
    taken = [np.array(VOID), *_FIRST]
    while len(chosen) < _FOR_OVERLAYS:
        for colour in taken:
            most = np.linalg.norm((lab - to_oklab(colour)) * _AXES, axis=1)
            few = np.linalg.norm(blind - seen_by_the_colour_blind(colour)[:, None], axis=2).min(axis=0)
            nearest = np.minimum(nearest, np.minimum(most, few / _BLIND_WEIGHT))
        taken = [candidates[int(nearest.argmax())]]
        chosen += taken
    return chosen


def ink_on(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns black or white, whichever is read more easily on a colour."""
    return (0, 0, 0) if float(to_oklab(np.array(colour))[0]) > 0.62 else (255, 255, 255)
