"""Settings of `report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from beitcli.config.common import overwrite_option
from beitcli.config.fields import option


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    command: ClassVar[str] = "report"
    runs: tuple[str, ...] = option((), "Run folders.", argument=True, required=True, panel="Data", metavar="RUN")
    output: str | None = option(
        None,
        "The page to write; default RUN/report.html, of several runs report.html here.",
        panel="Output",
        flags=("-o", "--output"),
        metavar="FILE.html",
        offered=(".html",),
    )
    overwrite: bool = overwrite_option()
