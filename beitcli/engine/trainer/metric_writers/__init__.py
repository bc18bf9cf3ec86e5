"""Metric writers of a training: one module per writer, named as in `--log-to`; `jsonl` is always on.

A module defines its writer as `WRITER`: a call without arguments, and without side effects, returns a `MetricWriter` or
raises UsageError if a package is missing. Only rank 0 has writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from beitcli.config.common import Training
from beitcli.runtime.storage.run_dir import RunFolder


class MetricWriter(Protocol):
    """Writes the metrics of one run; called in the order start, rewind, write..., close.

    One that takes pictures has `picture(step, name, file)` too, which gets a PNG file of the step before its metrics.
    """

    def start(self, run: RunFolder, config: Training) -> None:
        """Sets the run that the metrics belong to; its folder exists."""

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`, as the run will write it again. Called once; with 0 in a new run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a logged step; all are finite, and `epoch` is the first."""

    def close(self) -> None:
        """Ends writing; also called if the run was stopped or failed."""
