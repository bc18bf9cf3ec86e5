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
    """A mean difference with its 95% interval, infinite where there is none: of one pair, or of equal differences."""

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
        if not math.isfinite(self.low):
            return f"{self.mean:+.{digits}f} (all {self.n} seeds alike: no interval)"
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
    # Differences that are all equal say that a figure is coarse or one run counts twice, not that nothing varies.
    if n == 1 or statistics.stdev(differences) <= 1e-9 * max(1.0, abs(mean)):
        return Difference(mean, -math.inf, math.inf, n)
    margin = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - margin, mean + margin, n)


@dataclass(frozen=True)
class Claim:
    """`better` is claimed to exceed `worse`.

    Attributes:
        text: The claim, a sentence without its full stop.
        paper: The paper's difference by stage, where it has one.
        stages: Where it is claimed; empty for all.
        worse_column: Title of the column that `worse` is read from; empty for the same as `better`.
    """

    text: str
    better: str
    worse: str
    paper: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[str, ...] = ()
    worse_column: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim in one figure.

    Attributes:
        figure: Title of the figure.
        difference: None where no seed has both rows.
        paper: The paper's difference.
    """

    text: str
    figure: str
    difference: Difference | None
    paper: float | None = None

    @property
    def word(self) -> str:
        return "not run" if self.difference is None else self.difference.verdict

    def sentence(self, place: str = "", digits: int = 2) -> str:
        """Returns the claim with its verdict, as a line of a list; `place` names the table."""
        line = f"- **{self.word}**: {f'{place}: ' if place else ''}{self.text}. {self.figure}"
        if self.difference is None:
            return f"{line}."
        seeds = "" if self.difference.n == 1 else f", n = {self.difference.n}"
        paper = "" if self.paper is None else f"; the paper's difference: {self.paper:+.{digits}f}"
        return f"{line}: {self.difference.shown(digits)}{seeds}{paper}."


def judged(claim: Claim, figure: str, stage: str, better: Values, worse: Values) -> Verdict:
    """Returns the verdict on a claim in one figure; its values may have no seed in common."""
    difference = paired(better, worse) if better.keys() & worse.keys() else None
    return Verdict(claim.text, figure, difference, claim.paper.get(stage))


def cell(values: Values, digits: int = 2, usual: int | None = None) -> str:
    """Returns the mean with the standard deviation in brackets; "none" without values.

    Args:
        usual: How many seeds the table has; n is shown where this figure has another number.
    """
    if not values:
        return "none"
    each = list(values.values())
    deviation = f" ({statistics.stdev(each):,.{digits}f})" if len(each) > 1 else ""
    n = "" if usual is None or len(each) == usual else f", n = {len(each)}"
    return f"{statistics.mean(each):,.{digits}f}{deviation}{n}"


def delta(values: Values, reference: Values, usual: int) -> str:
    """Returns a difference as it stands in a table: nothing where no seed has both, n where it is not the usual one."""
    if not values.keys() & reference.keys():
        return ""
    found = paired(values, reference)
    return found.shown() + (f", n = {found.n}" if found.n not in (1, usual) else "")


def standard_error(percent: float, images: int) -> float:
    """Returns the standard error of an accuracy, in points, of that many independent images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table as lines."""
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
