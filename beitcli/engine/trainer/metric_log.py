"""Writes the metrics of a run to metrics.jsonl and to the writers of `--log-to`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from beitcli.config.common import ALWAYS_ON, METRIC_WRITERS, Training
from beitcli.engine.events import OnEvent, Warned
from beitcli.engine.trainer.metric_writers import MetricWriter
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.run_dir import RunFolder


def check_writers(config: Training, world: DistributedContext) -> None:
    """Raises, on all ranks, the UsageError for a writer that is unusable on rank 0, which alone has writers."""
    if config.log_to:
        world.run_on_rank_zero(lambda: bool(make_writers(config)))  # the other ranks get the answer, not the writers


def make_writers(config: Training) -> dict[str, MetricWriter]:
    """Returns the writers of a run, not started. Raises UsageError for an unknown one, or one that lacks a package."""
    return {name: METRIC_WRITERS.load(name)() for name in (ALWAYS_ON, *config.log_to)}


class MetricLog:
    """All metric writers of a run; empty on ranks that do not write.

    A writer of `--log-to` that fails is removed, with one warning: the run is worth more than its curve. metrics.jsonl
    is part of the run, so an error there fails the run.
    """

    def __init__(self, writers: dict[str, MetricWriter], on_event: OnEvent) -> None:
        self.writers, self.on_event = writers, on_event

    def start(self, run: RunFolder, config: Training, step: int) -> None:
        """Starts the writers, before the first `write`, for a run that continues from `step`, or from 0."""
        for name, writer in list(self.writers.items()):
            self._attempt(name, partial(_begin, writer, run, config, step))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Passes the finite metrics to all writers."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name, writer in list(self.writers.items()):
            self._attempt(name, partial(writer.write, step, finite))

    def picture(self, step: int, name: str, file: Path) -> None:
        """Passes a picture of a step to the writers that take pictures."""
        for writer_name, writer in list(self.writers.items()):
            take = getattr(writer, "picture", None)
            if take is not None:
                self._attempt(writer_name, partial(take, step, name, file))

    def close(self) -> None:
        for name, writer in list(self.writers.items()):
            self._attempt(name, writer.close)

    def _attempt(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:  # writers may be third-party code
            if name == ALWAYS_ON:
                raise
            del self.writers[name]
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            self.on_event(
                Warned(f"--log-to {name} failed, and gets no more metrics of this run ({said}). metrics.jsonl has all.")
            )


def _begin(writer: MetricWriter, run: RunFolder, config: Training, step: int) -> None:
    writer.start(run, config)
    writer.rewind(step)
