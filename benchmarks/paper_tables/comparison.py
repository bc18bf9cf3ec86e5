"""What a table says: mean and deviation over seeds, differences paired by seed, claims decided by their interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy.special import stdtrit

Values = Mapping[int, float]
"""Of one figure, by seed."""


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95% interval, which one pair alone does not have."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "held"
        return "did not hold" if self.high < 0 else "undecided"

    def shown(self, digits: int = 2) -> str:
        """Returns the difference with its interval, signed."""
        if self.n < 2:
            return f"{self.mean:+.{digits}f} (n = 1)"
        return f"{self.mean:+.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def paired(values: Values, reference: Values) -> Difference:
    """Returns the mean of `values` less `reference` over the seeds of both, with Student's 95% interval.

    Raises:
        ValueError: No seed is in both.
    """
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if not differences:
        raise ValueError("No seed has both.")
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return Difference(mean, -math.inf, math.inf, 1)
    margin = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - margin, mean + margin, n)


@dataclass(frozen=True)
class Claim:
    """`better` is claimed to exceed `worse`.

    Attributes:
        text: The claim, a sentence without its full stop.
        paper: The paper's difference by stage, where it has one.
    """

    text: str
    better: str
    worse: str
    paper: Mapping[str, float] = field(default_factory=dict)


def sentence(claim: Claim, figure: str, stage: str, better: Values, worse: Values, digits: int = 2) -> str:
    """Returns whether a claim held in one figure, as a line of a list."""
    found = paired(better, worse)
    paper = f"; the paper's difference: {claim.paper[stage]:+.{digits}f}" if stage in claim.paper else ""
    seeds = "" if found.n == 1 else f", n = {found.n}"
    return f"- **{found.verdict}**: {claim.text}. {figure}: {found.shown(digits)}{seeds}{paper}."


def cell(values: Values, digits: int = 2) -> str:
    """Returns the mean with the standard deviation in brackets; "none" without values."""
    if not values:
        return "none"
    each = list(values.values())
    deviation = f" ({statistics.stdev(each):,.{digits}f})" if len(each) > 1 else ""
    return f"{statistics.mean(each):,.{digits}f}{deviation}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as lines."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
