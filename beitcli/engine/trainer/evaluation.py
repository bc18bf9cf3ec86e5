"""What the evaluations of finetuned models have in common: processes, `--limit`, bad images, the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from beitcli.config.evaluate import EvalConfig
from beitcli.config.tasks import TaskDefinition
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, Warned, warn
from beitcli.engine.trainer.bad_images import Bad, refuse_many_bad
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.reports import Evaluated
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers, join_compute

Images = TypeVar("Images", bound=Source)
Report = TypeVar("Report", bound=Evaluated)


def join_evaluation(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent) -> Batching:
    """Joins the other processes; tells what is to be known of the checkpoint."""
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    on_event = compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    workers = choose_workers(config.workers, compute.device, compute.world.local_size)
    return Batching(compute, config.batch_size, workers, on_event)


def limited(
    config: EvalConfig, source: Images, some: Callable[[np.ndarray], Images], left_out: list[Bad]
) -> tuple[Images, list[Bad]]:
    """The images of `--limit`; all of them, and those without annotations that can be used, where it is not given.

    Args:
        some: Indices to a source of these images alone.
        left_out: Images that are not in the source.
    """
    if config.limit is None or config.limit >= len(source):
        return source, left_out
    return some(select_limit(source, config.limit, config.seed)), []


def evaluated(
    config: EvalConfig, task: TaskDefinition, kind: type[Report], images: int, bad: Sequence[Bad], **metrics: Any
) -> Report:
    """The report of a measurement.

    Args:
        images: That were read.
        bad: That were not.
    """
    data = " ".join(config.data)
    return kind(model=config.model, data=data, task=task.name, protocol="head", images=images, bad=len(bad), **metrics)


def tell_bad(config: EvalConfig, bad: Sequence[Bad], images: int, on_event: OnEvent) -> None:
    """Warns of images that are left out. Raises DataError where they are too many of `images`."""
    refuse_many_bad(bad, images, config.max_bad, "Mend or remove them, or raise --max-bad.")
    if bad:
        on_event(Warned(f"{len(bad)} images are left out, the first: {bad[0][1]}: {bad[0][2]}."))
