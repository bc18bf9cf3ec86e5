"""A finding: what will not work, and what would. Also used by `beit doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from beitcli.engine.events import Note, OnEvent, Warned
from beitcli.errors import DataError

Severity = Literal["note", "warning", "refusal"]


@dataclass(frozen=True)
class Finding:
    """Something about the data or the plan that the user should know.

    Attributes:
        kind: Word that programs can tell it by, such as `few-images`.
        severity: `refusal` if nothing can come of the job.
        what: What is so, a sentence with the numbers.
        way_out: What would work, one or two sentences; empty if there is nothing to do.
    """

    kind: str
    severity: Severity
    what: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.way_out}".rstrip()


def tell(findings: Iterable[Finding], on_event: OnEvent) -> None:
    """Emits an event for each finding, a line each that begins with its severity.

    Raises:
        DataError: One is a refusal; after all others are told.
    """
    refused = None
    for each in findings:
        if each.severity == "refusal":
            refused = refused or each
        else:
            on_event(Warned(str(each)) if each.severity == "warning" else Note(f"note: {each}"))
    if refused is not None:
        raise DataError(refused.what, refused.way_out)
