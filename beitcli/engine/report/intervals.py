"""Wilson's interval of a share (E. B. Wilson, JASA 22, 1927): how far n images can tell it; its best fixed guess."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

NORMAL_95 = 1.959963984540054  # of a normal distribution, for 95%
# Student's quantiles for 1 to 10 degrees of freedom.
_STUDENT_95 = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814)


def student_95(freedom: int) -> float:
    """Returns the half-width of Student's interval of 95%, in standard errors, for so many degrees of freedom.

    From 11 on by Cornish and Fisher's expansion about the normal quantile, which is right to 0.003.
    """
    if freedom <= len(_STUDENT_95):
        return _STUDENT_95[max(1, freedom) - 1]
    z = NORMAL_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def share_interval(share: float, of: int) -> tuple[float, float]:
    """Returns Wilson's interval of 95% of a share of `of` images."""
    return wilson(round(share * of), of)


def interval_of(name: str, measured: Mapping[str, float]) -> tuple[float, float] | None:
    """Returns the interval of 95% of a metric of held-out images; None if it has none, as mean IoU and AP.

    Args:
        measured: Metrics of one measuring: a standard error over images (`NAME_std_error`), and where nothing or all
            is right the number of patches; or the number of images.
    """
    value, error = measured[name], measured.get(f"{name}_std_error")
    if error is not None:
        images = int(measured.get("measured_images", 0))
        if images and not error:  # all images alike
            is_end = value in (0.0, 1.0)  # of which no number of images tells a spread, and the patches do
            return share_interval(value, int(measured.get("measured_patches", images)) if is_end else images)
        half = abs(error) * (student_95(images - 1) if images else NORMAL_95)
        return max(0.0, value - half), min(1.0, value + half)
    images = int(measured.get("images", 0))
    return share_interval(value, images) if name in ("top1", "top5") and images > 0 and 0 <= value <= 1 else None


def loss_lead(measured: Mapping[str, float], lead: float) -> tuple[float, float] | None:
    """Returns the interval of 95% of how far the loss is below guessing; None of one image, or where it is unknown.

    Args:
        lead: In nats.
    """
    error, images = measured.get("loss_lead_std_error"), int(measured.get("measured_images", 0))
    if error is None or images < 2:
        return None
    half = error * student_95(images - 1)
    return lead - half, lead + half


def commonest_share(labels: Iterable[float]) -> float:
    """Returns the share of the most frequent label: how often always guessing it is right; 0 of nothing."""
    counts = Counter(labels)
    return max(counts.values(), default=0) / max(1, counts.total())


def wilson(right: int, of: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Returns the interval of a share, by default of 95%; (0, 1) of nothing.

    center = (p + z^2 / 2n) / (1 + z^2 / n),  half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
    """
    if of <= 0:
        return 0.0, 1.0
    share, squared = right / of, z * z
    center = (share + squared / (2 * of)) / (1 + squared / of)
    half = z / (1 + squared / of) * math.sqrt(share * (1 - share) / of + squared / (4 * of * of))
    return max(0.0, center - half) if right else 0.0, min(1.0, center + half) if right < of else 1.0
