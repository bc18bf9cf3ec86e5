"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`, constant afterwards."""
    share = min(1.0, max(0.0, step / steps)) if steps > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def warmup_cosine(peak: float, end: float, step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(peak, end, step - warmup_steps, max(1, steps - 1 - warmup_steps))


def warmup_polynomial(
    peak: float, end: float, step: int, steps: int, warmup_steps: int, power: float = 1.0, ratio: float = 1e-6
) -> float:
    """Polynomial decay from `peak` at step 0 to `end` at `steps`, as (1 - step / steps)^power, times a linear warm-up.

    The warm-up factor rises from `ratio` at step 0 to 1 at `warmup_steps` (mmseg's schedule, which the release uses).
    """
    falling = end + (peak - end) * max(0.0, 1 - step / steps) ** power
    if step >= warmup_steps:
        return falling
    return falling * (ratio + (1 - ratio) * step / warmup_steps)
