"""A sequential colour map for values in [0, 1]."""

from __future__ import annotations

import numpy as np

# Dark blue over red to pale yellow, in equal steps of OKLab lightness (0.14 to 0.96): equal differences look equal,
# and the map stays readable in greyscale.
_HEAT = np.array(
    [
        (9, 0, 40),
        (39, 1, 70),
        (76, 0, 90),
        (118, 2, 98),
        (163, 3, 94),
        (202, 37, 78),
        (228, 82, 60),
        (241, 127, 57),
        (243, 171, 93),
        (240, 211, 153),
        (244, 243, 226),
    ],
    dtype=np.float64,
)


def apply(values: np.ndarray) -> np.ndarray:
    """Maps values to colours, dark for 0 and pale for 1.

    Args:
        values: (H, W) in [0, 1]; values outside are clipped.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: A value is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("NaN has no colour")
    steps = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, steps, _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
