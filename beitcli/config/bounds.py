"""Bounds of numeric settings, and the error messages for values outside them (stdlib only)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from beitcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a number, which must also be finite.

    Attributes:
        ge: Minimum.
        gt: Exclusive minimum.
        le: Maximum.
        lt: Exclusive maximum.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __bool__(self) -> bool:
        """Whether any bound is set."""
        return self != UNBOUNDED

    def admit(self, value: float) -> bool:
        """Whether `value` is within the bounds; False for NaN."""
        return (
            -math.inf < value < math.inf
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def require(self, flag: str, value: float, hint: str = "") -> None:
        """Raises UsageError if `value` is out of bounds; `flag` names the setting: `--lr`."""
        if not self.admit(value):
            raise UsageError(f"{flag} is {value}; it must {self._words()}.", hint)

    def _words(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"lie between {self.ge} and {self.le}"
        limits = {"at least": self.ge, "a number above": self.gt, "at most": self.le, "below": self.lt}
        given = [f"{words} {limit}" for words, limit in limits.items() if limit is not None]
        return f"be {' and '.join(given) or 'a finite number'}"


UNBOUNDED = Bounds()
