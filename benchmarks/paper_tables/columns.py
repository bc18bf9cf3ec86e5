"""The columns of a table: which figure of which cells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A figure.

    Attributes:
        stage: The cells that have it.
        key: Its name in what they print; shown in percent.
        rows: Names of the rows that have it; empty for all.
        reference: The row that others are compared with; empty for the table's.
        is_claimed: Whether the claims are about it.
        is_compared: Whether differences to the reference are shown.
    """

    title: str
    stage: str
    key: str
    rows: tuple[str, ...] = ()
    reference: str = ""
    is_claimed: bool = True
    is_compared: bool = True

    def has(self, variant: str) -> bool:
        return not self.rows or variant in self.rows
