"""Wilson's interval of a share (E. B. Wilson, JASA 22, 1927): how far n images can tell it."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054  # of a normal distribution, for 95%


def wilson(right: int, of: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Returns the interval of a share, by default of 95%; (0, 1) of nothing.

    center = (p + z^2 / 2n) / (1 + z^2 / n),  half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    if of <= 0:
        return 0.0, 1.0
    share, squared = right / of, z * z
    center = (share + squared / (2 * of)) / (1 + squared / of)
    half = z / (1 + squared / of) * math.sqrt(share * (1 - share) / of + squared / (4 * of * of))
    return max(0.0, center - half), min(1.0, center + half)
