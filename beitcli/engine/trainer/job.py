"""One training job of any kind: its data, its image transform, its `Task`, and the contents of its report and card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, TypeVar

from beitcli.config.common import Training
from beitcli.data.loading.batch_datasets import Masking, Transform
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent
from beitcli.engine.report.run_time import RunTime, time_of
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.checkpointing import TrainState
from beitcli.engine.trainer.data import TrainingStream
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task
from beitcli.runtime.compute.device import Compute, choose_workers
from beitcli.runtime.metric_text import extra_metrics, measured_images
from beitcli.runtime.storage.run_dir import RunFolder

Report = TypeVar("Report")


class JobData(Protocol):
    """Training images of a run, those to measure on and whether they are others, and those known to be unreadable."""

    @property
    def training(self) -> Source: ...

    @property
    def held_out(self) -> int: ...

    @property
    def bad(self) -> Sequence[Bad]: ...

    @property
    def measured(self) -> Source: ...

    @property
    def is_apart(self) -> bool: ...


@dataclass(frozen=True)
class Finished:
    """A run that has done all its steps.

    Attributes:
        plan: The original plan, without a micro-batch size that was found later.
    """

    run: RunFolder
    plan: Plan
    state: TrainState

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the held-out images at the last step."""
        return self.state.metrics or {}

    def report(self, kind: type[Report], **own: Any) -> Report:
        """Returns a report: fields common to all trainings, the fields `own`, and metrics whose name is a field.

        Args:
            kind: Dataclass; its `further` gets the metrics that have no field.
        """
        names, state = [each.name for each in fields(kind)], self.state  # type: ignore[arg-type]
        time = RunTime(time_of(self.run.path).tokenizer, state.seconds, state.measuring_seconds)
        shared = {
            "run": str(self.run.path),
            "checkpoint": str(self.run.checkpoints / f"step-{state.step:07d}"),
            "step": state.step,
            "epoch": self.plan.epoch(state.step),
            "images_seen": state.step * self.plan.batch_size,
            "images_per_second": state.images_per_second,
            "seconds": time.training,
            "measuring_seconds": time.measuring,
            "tokenizer_seconds": time.tokenizer,
            "total_seconds": time.total,
            "further": extra_metrics(self.metrics, names),
        }
        values = self.metrics | shared | own
        return kind(**{name: value for name, value in values.items() if name in names})


def no_warnings(report: Any) -> Iterable[str]:
    """Returns no warnings, whatever the report."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Report]):
    """Definition of one training.

    Attributes:
        title: Title of the plan.
        transform: Transform of a training image.
        masking: Mask generator of its patches; None without masking.
        rows: Rows of the plan, for display.
        report: Maps a finished run to the report; `Finished.report` does most of it.
        card: Maps (report, hardware) to the model card.
        warnings: Maps a report to warnings.
        flops: FLOP per image, forward and backward; 0 if unknown.
        seconds_before: Estimated seconds of another training that comes first, in a dry run.
        document: Entries of the dry run's document besides the plan.
    """

    title: str
    config: Training
    compute: Compute
    on_event: OnEvent
    data: JobData
    transform: Transform
    masking: Masking | None = None
    plan: Plan
    task: Task
    rows: dict[str, str]
    report: Callable[[Finished], Report]
    card: Callable[[Report, str], str]
    warnings: Callable[[Report], Iterable[str]] = no_warnings
    flops: float = 0.0
    seconds_before: float = 0.0
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def planned(self) -> dict[str, str]:
        """The rows of the plan, with the images that are measured."""
        on = measured_images(len(self.data.measured), on_training=not self.data.is_apart)
        return {name: f"{row}, {on}" if name == "measured" else row for name, row in self.rows.items()}

    @property
    def stream(self) -> TrainingStream:
        """The stream of its training batches."""
        workers = choose_workers(self.config.workers, self.compute.device, self.compute.world, training=True)
        return TrainingStream(self.config, self.data.training, self.transform, self.compute, workers, self.masking)
