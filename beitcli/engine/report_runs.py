"""`beit report`: the page of one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli.config.report import ReportConfig
from beitcli.engine.report.page import PAGE, report_document, report_page
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.runtime.storage.own_files import atomic_write_text, require_own


@dataclass(frozen=True)
class Reported:
    """A page that was written, and what it says as plain values."""

    path: Path
    document: dict[str, Any]


def report(config: ReportConfig) -> Reported:
    """Writes the page.

    Raises:
        DataError: A folder is no run.
        UsageError: The page exists already and was not made for one run in it, or its name does not end in .html.
        StorageError: It cannot be written.
    """
    runs = [Path(each) for each in dict.fromkeys(config.runs)]
    for run in runs:
        if not (run / "config.toml").is_file():
            raise DataError(f"'{run}' is no run: it has no config.toml.", "`beit runs DIR` lists the runs below DIR.")
    own = config.output is None and len(runs) == 1
    target = runs[0] / PAGE if own else Path(config.output or PAGE)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o '{config.output}' ends in no format that is known here.", "Give a name in .html.")
    if target.exists() and not own and not config.overwrite:
        raise UsageError(f"'{target}' exists already.", "Give another -o, or add --overwrite.")
    try:
        document, page = report_document(runs), report_page(runs)
    except (OSError, ValueError) as error:
        raise DataError(f"The settings of a run cannot be read: {error}.", "Leave that run out.") from None
    try:
        require_own(target)
        atomic_write_text(target, page)
    except OSError as error:
        raise StorageError(f"'{target}' cannot be written: {error.strerror or error}.", "Give -o FILE.html.") from None
    return Reported(target, document)
