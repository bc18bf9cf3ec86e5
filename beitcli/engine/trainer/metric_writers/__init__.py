"""Where the metrics of a training go: a module a writer, by the name of `--log-to`; `jsonl` is always on.

A writer is the attribute `WRITER` of its module: called without arguments, which must change nothing, it gives a
`MetricWriter` or raises UsageError where a package is missing. Only the first process has writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from beitcli.config.common import Training
from beitcli.runtime.storage.run_dir import RunFolder


class MetricWriter(Protocol):
    """Takes the metrics of one run, in the order start, rewind, write..., close."""

    def start(self, run: RunFolder, config: Training) -> None:
        """The run that metrics are to come from; its folder exists."""

    def rewind(self, step: int) -> None:
        """Drops what lies past `step`: the run is about to write it again. Called once, with 0 in a new run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a logged step, finite all of them; `epoch` is the first."""

    def close(self) -> None:
        """Nothing follows; also called where the run was stopped or failed."""
