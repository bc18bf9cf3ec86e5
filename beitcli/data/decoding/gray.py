"""Maps gray numbers of any type to 8 bits."""

from __future__ import annotations

import numpy as np


def gray_to_uint8(values: np.ndarray, top: int = 65535) -> np.ndarray:
    """Converts (H, W) integers or floats to (H, W) uint8.

    Integers within [0, top] are divided by top / 255, floats within [0, 1] multiplied by 255, floats within [0, 255]
    rounded. All else is stretched from the minimum to the maximum.

    Args:
        top: What white is, for integers.
    """
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
