"""`beit report`: the page of one or several runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli.config.output_formats import unknown_format
from beitcli.config.report import ReportConfig
from beitcli.engine.io.output_paths import is_stream, make_folder
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.write_output import write_output
from beitcli.engine.report.page import PAGE, report_document, report_page
from beitcli.errors import DataError, StorageError
from beitcli.runtime.storage.own_files import atomic_write, require_own


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
            what = "is no run: it has no config.toml" if run.exists() else "does not exist"
            raise DataError(f"'{run}' {what}.", "`beit runs DIR` lists the runs below DIR.")
    own = config.output is None and len(runs) == 1
    target = runs[0] / PAGE if own else Path(config.output or PAGE)
    named = config.output is not None  # then a link is followed, and a pipe is written into
    if target.suffix.lower() not in (".html", ".htm") and not (named and is_stream(target)):
        raise unknown_format(config.output, (".html", ".htm"))
    if not own:
        inputs = ProtectedInputs(config)
        require_writable_outputs([target], f"-o '{target}'", inputs, overwrite=config.overwrite, follows=named)
    try:
        document, page = report_document(runs), report_page(runs).encode()
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"The files of a run cannot be read: {error}.", "Leave that run out.") from None
    if named:
        if not is_stream(target):
            make_folder(Path(os.path.realpath(target)).parent)
        write_output(target, lambda file: file.write(page))
        return Reported(target, document)
    try:
        require_own(target)
        atomic_write(target, lambda file: file.write(page))
    except OSError as error:
        raise StorageError(f"'{target}' cannot be written: {error.strerror or error}.", "Give -o FILE.html.") from None
    return Reported(target, document)
