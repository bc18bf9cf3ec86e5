"""The images of a training: opened, checked, held out, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from beitcli.config.common import Training
from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.batch_datasets import Masking, StreamPart, Transform
from beitcli.data.loading.batches import Batch, training_batches
from beitcli.data.loading.sampler import select_limit, split_holdout
from beitcli.data.sources.base import Source
from beitcli.data.sources.files_in_memory import FilesInMemory
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import trains_apart_from_val
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, openings
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.preflight.amount import held_out_images
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.metric_text import counted, measured_images, none_of

_MEASURED_WITHOUT_HOLDOUT = 512
_LARGEST_TWENTIETH = 512  # images, of data with annotations
Images = TypeVar("Images", bound=Source)


def open_images(
    config: Training, *, labelled: bool, size: int, on_event: OnEvent, world: DistributedContext = SINGLE_PROCESS
) -> Source:
    """Opens the training data, cut to `--limit`; rank 0 first, so that the other ranks reuse its cached listing."""
    require_an_image_each(config.batch_size, world)
    vectors = getattr(config, "problem", None) == "multi-label"
    request = Request.of(config, labelled=labelled, vectors=vectors, sample_size=size, on_progress=openings(on_event))
    source = world.rank_zero_first(lambda: open_data(config.data, request))
    if config.limit is not None and config.limit < len(source):
        chosen = np.sort(select_limit(source, config.limit, config.seed))  # keeps Parquet row groups together
        source = Subset(source, chosen)
    if getattr(config, "in_memory", False):
        source = FilesInMemory(source, processes=world.local_size, on_progress=openings(on_event))
    of = f" of {len(source.classes):,} classes" if source.classes else ""
    on_event(Note(f"Data: {counted(len(source), 'image')}{of}"))
    return source


def require_an_image_each(batch_size: int, world: DistributedContext) -> None:
    """Raises UsageError if a rank would have no image of a step."""
    if batch_size < world.size:
        raise UsageError(
            f"--batch-size {batch_size} leaves some of {world.size} processes without an image.",
            f"Give {world.size} or more: it counts the images of all processes.",
        )


def validation_data(config: FinetuneConfig, source: Source) -> tuple[Sequence[str], str | None, str] | None:
    """Returns references, split and name of the validation data; None if images of DATA must be held out instead.

    It is `--val` if given, else the validation split of DATA if training on `source` leaves one aside.

    Raises:
        UsageError: There is such a split, and `--holdout` is given as a flag, which would do nothing.
    """
    if config.val is not None:
        return (config.val,), None, config.val
    if trains_apart_from_val(config.split, source.splits):
        if config.origins.get("holdout") == "flag" and not config.resume:
            raise UsageError(
                f"--holdout {config.holdout} has no effect: DATA has a validation split, which is measured.",
                "Leave it out.",
            )
        return config.data, "val", f"{' '.join(config.data)}, split val"
    return None


def val_name(config: FinetuneConfig) -> str:
    """Returns what a message calls the data of `validation_data`."""
    return "The validation split" if config.val is None else f"--val '{config.val}'"


@dataclass(frozen=True)
class HeldOut:
    """Training and validation images of a run.

    Attributes:
        measured: Images held out of training; some of the training images if there are too few to hold any out. An
            evaluation leaves out those that cannot be read.
        bad: Unreadable images that were to be held out, where none of them can be read.
        has_own_validation: Whether `measured` is a set of its own, none of DATA's images.
    """

    training: Source
    measured: Source
    bad: tuple[Bad, ...]
    is_apart: bool
    has_own_validation: bool = False

    @property
    def held_out(self) -> int:
        """Number of images of DATA that are measured and not trained on."""
        return len(self.measured) if self.is_apart and not self.has_own_validation else 0

    @property
    def name(self) -> str:
        return measured_images(len(self.measured), on_training=not self.is_apart)


def validation_images(config: FinetuneConfig, images: int, most: int) -> int:
    """Returns how many of the images of a finetuning are held out, by `--holdout`.

    A share of n images is known to about 1 / sqrt(n), at 95%: 3 of 60 images say nothing, 12 tell good from bad, and 50
    tell it to 14 points. So a small set gives a fifth, as is usual, and one that can spare 50 images no more of them,
    up to a twentieth.

    Args:
        most: Images that a twentieth may be; `--holdout` may be more.
    """
    return max(min(images // 20, most), min(images // 5, config.holdout))


def hold_out(
    source: Source, count: int, seed: int, world: DistributedContext = SINGLE_PROCESS, *, is_exact: bool = False
) -> HeldOut:
    """Holds `count` images, at most a twentieth of the data unless `is_exact`, out of training for evaluation.

    If none of them can be read, none is held out. Rank 0 decodes them up to the first that can be.
    """
    kept, unreadable = count if is_exact else held_out_images(len(source), count), tuple[Bad, ...]()
    if kept:
        training, held_out = split_holdout(source, kept, seed)
        unreadable = world.run_on_rank_zero(lambda: _unreadable(source, held_out))
        if len(unreadable) < kept:
            return HeldOut(Subset(source, training), Subset(source, held_out), (), True)
    some = select_limit(source, min(len(source), _MEASURED_WITHOUT_HOLDOUT), seed)
    some = np.setdiff1d(some, [record[0] for record in unreadable])
    more = world.run_on_rank_zero(lambda: _unreadable(source, some))
    bad = (*unreadable, *more)
    if len(more) == len(some):
        first = "the first: " if len(bad) > 1 else ""
        raise DataError(
            f"{none_of(len(bad), 'image', '', 'can be read', 'cannot be read')}, {first}{bad[0][1]}: {bad[0][2]}.",
            "`beit doctor DATA` says why of each.",
        )
    return HeldOut(source, Subset(source, some), unreadable, False)


def measured_text(name: str, left_out: int) -> str:
    """Returns what a run is measured on, such as `512 held-out images, 2 images unreadable`."""
    return f"{name}, {counted(left_out, 'image')} unreadable" if left_out else name


def hold_out_annotated(
    source: Images, subset: Callable[[np.ndarray], Images], config: FinetuneConfig
) -> tuple[Images, Images, str, bool]:
    """Like `hold_out`, for data whose annotations are already checked; decodes no image.

    Args:
        subset: Maps indices to the source of that subset.

    Returns:
        Training images, validation images, the name of the latter, and whether they are none of the former.
    """
    kept, seed = validation_images(config, len(source), _LARGEST_TWENTIETH), config.seed
    if kept:
        training, held_out = split_holdout(source, kept, seed)
        return subset(training), subset(held_out), measured_images(kept, on_training=False), True
    chosen = select_limit(source, min(len(source), _MEASURED_WITHOUT_HOLDOUT), seed)
    return source, subset(chosen), measured_images(len(chosen), on_training=True), False


def _unreadable(source: Source, indices: np.ndarray) -> tuple[Bad, ...]:
    """Returns the unreadable images before the first that can be read."""
    found: list[Bad] = []
    for index in indices.tolist():
        try:
            source.image(index)
            break
        except BadImage as error:
            found.append((index, source.path(index), error.message))
    return tuple(found)


@dataclass(frozen=True)
class TrainingStream:
    """This rank's part of a job's batches.

    Attributes:
        workers: Number of loader processes.
        masking: Mask generator of the patches; None without masking.
    """

    config: Training
    source: Source
    transform: Transform
    compute: Compute
    workers: int
    masking: Masking | None = None

    def start(self, images_seen: int, steps: int, batch_size: int | None = None) -> Iterator[Batch]:
        """Iterates from position `images_seen`; `batch_size` images per step instead of the configured number."""
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
            workers=self.workers,
            masking=self.masking,
            pin_memory=self.compute.device.type == "cuda",
            share=(world.rank, world.size),
        )
