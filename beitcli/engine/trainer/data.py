"""The images of a training: opened, checked, held out, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from beitcli.config.common import Training
from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.batches import Batch, Masking, StreamPart, Transform, training_batches
from beitcli.data.loading.sampler import select_limit, split_holdout
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import trains_apart_from_val
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, openings
from beitcli.engine.trainer.bad_images import Bad
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.compute.device import Compute, choose_workers
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext

_MEASURED_WITHOUT_HOLDOUT = 512
Images = TypeVar("Images", bound=Source)


def open_images(
    config: Training, *, labelled: bool, size: int, on_event: OnEvent, world: DistributedContext = SINGLE_PROCESS
) -> Source:
    """The training data, cut to `--limit`; the other processes open it when the first one's listing of it is kept."""
    require_an_image_each(config.batch_size, world)
    request = Request.of(config, labelled=labelled, sample_size=size, on_progress=openings(on_event))
    source = world.rank_zero_first(lambda: open_data(config.data, request))
    if config.limit is not None and config.limit < len(source):
        chosen = np.sort(select_limit(source, config.limit, config.seed))  # parquet's groups stay together
        source = Subset(source, chosen)
    on_event(Note(f"Data: {len(source):,} images" + (f" of {len(source.classes)} classes" if source.classes else "")))
    return source


def require_an_image_each(batch_size: int, world: DistributedContext) -> None:
    """Raises UsageError where a process would have no image of a step."""
    if batch_size < world.size:
        raise UsageError(
            f"--batch-size {batch_size} leaves some of {world.size} processes without an image.",
            f"Give {world.size} or more: it counts the images of all processes.",
        )


def validation_data(config: FinetuneConfig, source: Source) -> tuple[Sequence[str], str | None, str] | None:
    """References to measure on, their split, and what to call them; None where DATA itself must give up some images.

    `--val` where given, else the validation split that training on `source` leaves aside.
    """
    if config.val is not None:
        return (config.val,), None, config.val
    if trains_apart_from_val(config.split, source.splits):
        return config.data, "val", f"{' '.join(config.data)}, split val"
    return None


@dataclass(frozen=True)
class HeldOut:
    """What a run trains on and what it is measured on.

    Attributes:
        measured: Images kept out of training; some of the training images where there are too few to keep any.
        bad: Unreadable images among those that were kept out.
    """

    training: Source
    measured: Source
    bad: tuple[Bad, ...]
    is_apart: bool

    @property
    def name(self) -> str:
        return f"{len(self.measured)} {'held-out' if self.is_apart else 'training'} images"


def hold_out(source: Source, count: int, seed: int, world: DistributedContext = SINGLE_PROCESS) -> HeldOut:
    """Keeps `count` images, a twentieth of the data at most, out of training to measure on.

    They are decoded once here, so that a figure never rests on images that cannot be read; by the first process.
    """
    kept = min(count, len(source) // 20)
    if kept:
        training, held_out = split_holdout(source, kept, seed)
        bad = world.run_on_rank_zero(lambda: tuple(_unreadable(source, held_out)))
        readable = np.setdiff1d(held_out, [record[0] for record in bad])
        if len(readable):
            return HeldOut(Subset(source, training), Subset(source, readable), bad, True)
    some = select_limit(source, min(len(source), _MEASURED_WITHOUT_HOLDOUT), seed)
    bad = world.run_on_rank_zero(lambda: tuple(_unreadable(source, some)))
    readable = np.setdiff1d(some, [record[0] for record in bad])
    if not len(readable):
        raise DataError(
            f"None of {len(some)} images can be read, the first: {bad[0][1]}: {bad[0][2]}.", "Check the data."
        )
    return HeldOut(source, Subset(source, readable), bad, False)


def hold_out_annotated(source: Images, subset: Callable[[np.ndarray], Images], seed: int) -> tuple[Images, Images, str]:
    """`hold_out` for data whose annotations are checked already; decodes no image.

    Args:
        subset: Returns the source of a subset, by indices.

    Returns:
        Training images, validation images, and the name of the latter.
    """
    kept = min(_MEASURED_WITHOUT_HOLDOUT, len(source) // 20)
    if kept:
        training, held_out = split_holdout(source, kept, seed)
        return subset(training), subset(held_out), f"{kept} held-out images"
    chosen = select_limit(source, min(len(source), _MEASURED_WITHOUT_HOLDOUT), seed)
    return source, subset(chosen), f"{len(chosen)} training images"


def _unreadable(source: Source, indices: np.ndarray) -> Iterator[Bad]:
    source.prefetch(indices)
    for index in indices.tolist():
        try:
            source.image(index)
        except BadImage as error:
            yield index, source.path(index), error.message


@dataclass(frozen=True)
class TrainingStream:
    """This process's part of a job's batches.

    Attributes:
        masking: Of the patches; None where none are hidden.
    """

    config: Training
    source: Source
    transform: Transform
    compute: Compute
    masking: Masking | None = None

    def start(self, images_seen: int, steps: int, batch_size: int | None = None) -> Iterator[Batch]:
        """From `images_seen` on; `batch_size` images a step in place of the job's."""
        config, world = self.config, self.compute.world
        part = StreamPart(
            seed=config.seed,
            batch_size=batch_size or config.batch_size,
            images_seen=images_seen,
            steps=steps,
            repeats=getattr(config, "repeats", 1),
        )
        return training_batches(
            self.source,
            self.transform,
            part,
            workers=choose_workers(config.workers, self.compute.device, world.local_size),
            masking=self.masking,
            pin_memory=self.compute.device.type == "cuda",
            share=(world.rank, world.size),
        )
