"""Evaluation of a finetuned model for any task: process group, bad images, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from beitcli.config.evaluate import EvalConfig
from beitcli.config.tasks import TaskDefinition
from beitcli.engine.events import OnEvent, Warned, warn
from beitcli.engine.trainer.bad_images import Bad, left_out_text, refuse_many_bad
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.reports import Evaluated
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers, join_compute

Report = TypeVar("Report", bound=Evaluated)


def join_evaluation(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent) -> Batching:
    """Joins the process group and emits the warnings of the checkpoint."""
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    on_event = compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    workers = choose_workers(config.workers, compute.device, compute.world)
    return Batching(compute, config.batch_size, workers, on_event)


def evaluated(
    config: EvalConfig, task: TaskDefinition, kind: type[Report], images: int, bad: Sequence[Bad], **metrics: Any
) -> Report:
    """Builds the report of an evaluation.

    Args:
        images: Number of images that were read.
        bad: Images that could not be read.
    """
    data = " ".join(config.data)
    return kind(model=config.model, data=data, task=task.name, protocol="head", images=images, bad=len(bad), **metrics)


def warn_bad(config: EvalConfig, bad: Sequence[Bad], images: int, on_event: OnEvent, what: str = "image") -> None:
    """Warns about images that are left out. Raises DataError if they are too many of `images`.

    Args:
        what: One of them, as `training image`.
    """
    refuse_many_bad(bad, images, config.max_bad, "Mend or remove them, or raise --max-bad.")
    if bad:
        on_event(Warned(left_out_text(bad, what)))
