"""Maps gray numbers of any type to 8 bits."""

from __future__ import annotations

import numpy as np

from beitcli.config.intensity import FULL, IntensityRange

_DARKEST, _BRIGHTEST = 0.1, 99.9  # percentiles of an image's own range


def gray_to_uint8(values: np.ndarray, top: int = 65535, intensity: IntensityRange = FULL) -> np.ndarray:
    """Converts (H, W) integers or floats to (H, W) uint8.

    Integers within [0, top] are divided by top / 255, floats within [0, 1] multiplied by 255, floats within [0, 255]
    rounded. All else is stretched from the minimum to the maximum. Another `intensity` than `full` clips to its range;
    an image of a single number has no range of its own and is scaled as by `full`.

    Args:
        top: What white is, for integers.
    """
    if intensity != FULL:
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = intensity.low, intensity.high
        if intensity.kind == "auto":
            low, high = np.percentile(finite, (_DARKEST, _BRIGHTEST))
            if low == high:  # nearly all numbers are equal
                low, high = finite.min(), finite.max()
        if low < high:
            return np.rint(((finite - low) * (255 / (high - low))).clip(0, 255)).astype(np.uint8)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        least, greatest = values.min(), values.max()
        if least >= 0 and greatest <= 1:
            values = values * 255
        elif least < 0 or greatest > 255:
            values = (values - least) * (255 / (greatest - least or 1))
        return np.rint(values).astype(np.uint8)
    values = values.astype(np.int64)
    least, greatest = int(values.min()), int(values.max())
    if least < 0 or greatest > top:
        values = (values - least) * 65535 // (greatest - least or 1)
        top = 65535
    return ((values * 255 + top // 2) // top).astype(np.uint8)
