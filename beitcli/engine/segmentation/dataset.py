"""Segmentation data before training: opens it, checks every mask, counts and names the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.annotations.label_maps import IGNORED, MOST_CLASSES, LabelMapping
from beitcli.data.decode import read_upright_size
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.format import Request
from beitcli.data.sources.segmentation import SAMPLE_CLASSES, SegmentationSource, open_segmentation
from beitcli.engine.events import Note, OnEvent, Progress, Tabulated, Warned, openings
from beitcli.engine.trainer.bad_images import Bad, left_out_text, refuse_many_bad
from beitcli.engine.trainer.data import hold_out_annotated, validation_data
from beitcli.engine.trainer.finetuning import FinetuneData
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.metric_text import counted
from beitcli.runtime.storage.regular_files import read_regular

_TINY = 0.01  # share of pixels
_MEND = "Mend the masks (a value that is no class: --ignore-index VALUE), or raise --max-bad."


@dataclass(frozen=True)
class MaskStats:
    """Statistics of the masks of a source.

    Attributes:
        pixels: (256,) int64, number of pixels per label; the last counts ignored ones.
        images: (256,) int64, number of images with each label.
        good: (n,) int64 indices of images with a valid mask.
        bad: (index, path, reason) of the other images.
    """

    pixels: np.ndarray
    images: np.ndarray
    good: np.ndarray
    bad: tuple[Bad, ...]

    @property
    def largest(self) -> int:
        """The largest label; -1 if no pixel is labelled."""
        found = np.flatnonzero(self.pixels[:IGNORED])
        return int(found[-1]) if len(found) else -1


def open_segmentation_data(
    config: FinetuneConfig,
    class_names: tuple[str, ...],
    size: int,
    on_event: OnEvent,
    world: DistributedContext = SINGLE_PROCESS,
) -> FinetuneData[SegmentationSource]:
    """Opens and checks all data of a run before its first step, in distributed training on rank 0.

    Args:
        class_names: Class names of a resumed run; empty to determine them.
        size: Side of the images of `sample`, in pixels.

    Raises:
        DataError: Too many images without a valid mask, or fewer than two classes.
        UsageError: The file of class names is not valid.
    """
    names = class_names or _given_names(config)
    rule = LabelMapping(
        ignore_index=config.ignore_index,
        reduce_zero_label=config.reduce_zero_label,
        classes=len(names) or None,
    )
    request = Request.of(config, role="train", sample_size=size, on_progress=openings(on_event))
    source = world.rank_zero_first(lambda: _opened(config.data, rule, request, on_event))
    own = validation_data(config, source)
    if config.limit is not None and config.limit < len(source):
        source = source.subset(np.sort(select_limit(source, config.limit, config.seed)))
    census = world.run_on_rank_zero(lambda: collect_mask_stats(source, "masks", on_event))
    refuse_many_bad([*_without(source), *census.bad], len(source) + len(source.missing), config.max_bad, _MEND)
    bad = [*_without(source), *census.bad]
    clean, largest = source.subset(census.good), census.largest
    is_apart = True
    if own is not None:
        references, split, on = own
        request_to_measure = replace(request, split=split, role="eval", nul_separated=False)
        val = world.rank_zero_first(lambda: _opened(references, rule, request_to_measure, on_event))
        seen = world.run_on_rank_zero(lambda: collect_mask_stats(val, "masks to measure on", on_event))
        refuse_many_bad([*_without(val), *seen.bad], len(val) + len(val.missing), config.max_bad, _MEND)
        _tell([*_without(val), *seen.bad], on_event)
        largest = max(largest, seen.largest)
        measured = val.subset(seen.good)
    else:
        clean, measured, on, is_apart = hold_out_annotated(clean, clean.subset, config)
    if not names:
        names = default_names(largest + 1)
        on_event(Note(f"Classes: {len(names)}, as the largest label in the masks is {largest}; --classes names them."))
    _require_two(census, names)
    on_event(_histogram(census, names))
    rule = LabelMapping(ignore_index=rule.ignore_index, reduce_zero_label=rule.reduce_zero_label, classes=len(names))
    return FinetuneData(
        clean.with_label_rule(rule),
        measured.with_label_rule(rule),
        names,
        tuple(bad),
        on,
        is_apart=is_apart,
        has_own_validation=own is not None,
        findings=tuple(mask_stats_findings(census, names)),
    )


def _given_names(config: FinetuneConfig) -> tuple[str, ...]:
    if config.classes:
        return read_names(config.classes)
    drawn = all(reference == "sample" for reference in config.data) and not config.reduce_zero_label
    return SAMPLE_CLASSES if drawn else ()


def _opened(references: Sequence[str], rule: LabelMapping, request: Request, on_event: OnEvent) -> SegmentationSource:
    source = open_segmentation(references, rule, request)
    on_event(Note(f"Data: {counted(len(source), 'image')} with masks of '{source.name}'"))
    return source


def _tell(bad: Sequence[Bad], on_event: OnEvent) -> None:
    if bad:
        on_event(Warned(left_out_text(bad, "measured image")))


def _without(source: SegmentationSource) -> list[Bad]:
    return [(-1, path, "it has no mask") for path in source.missing]


def collect_mask_stats(source: SegmentationSource, what: str, on_event: OnEvent) -> MaskStats:
    """Reads every mask and every image file, of which it decodes the masks alone: about 2 ms per mask of 500 x 700."""
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    good: list[int] = []
    bad: list[Bad] = []
    for index in range(len(source)):
        try:
            width, height = read_upright_size(source.read(index))
            counts = np.bincount(source.labels(index, (height, width)).ravel(), minlength=256)
        except BadImage as error:
            bad.append((index, source.path(index), error.message))
            continue
        pixels += counts
        images += counts > 0
        good.append(index)
        if index % 64 == 63 or index + 1 == len(source):
            on_event(Progress(what, index + 1, len(source), "mask"))
    return MaskStats(pixels, images, np.array(good, dtype=np.int64), tuple(bad))


def _require_two(census: MaskStats, names: tuple[str, ...]) -> None:
    labelled = np.flatnonzero(census.pixels[:IGNORED])
    if len(labelled) >= 2:
        return
    there = f"one class only, '{names[labelled[0]]}'" if len(labelled) else "no labelled pixel"
    raise DataError(
        f"The masks of {len(census.good):,} images hold {there}; at least two classes are needed.",
        "Check the masks, --ignore-index and --reduce-zero-label.",
    )


def mask_stats_findings(census: MaskStats, names: tuple[str, ...]) -> Iterator[Finding]:
    """Yields whether next to nothing of the masks is labelled, or of another class than the most frequent."""
    labelled, total = int(census.pixels[:IGNORED].sum()), int(census.pixels.sum())
    if labelled < _TINY * total:
        yield Finding(
            "tiny-masks",
            "warning",
            f"{labelled / total:.2%} of the masks' pixels are labelled, the others are ignored.",
            "Check --ignore-index and --reduce-zero-label.",
        )
    largest = int(census.pixels[:IGNORED].argmax())
    share = census.pixels[largest] / max(1, labelled)
    if 1 > share > 1 - _TINY:
        pixels = (labelled - int(census.pixels[largest])) / len(census.good)
        yield Finding(
            "tiny-masks",
            "warning",
            f"{share:.2%} of the labelled pixels are '{names[largest]}': the others are {pixels:,.0f} an image on "
            "average.",
            "Look at miou, not at pixel_accuracy; cut the images to what is marked, or mark more.",
        )


def _histogram(census: MaskStats, names: tuple[str, ...]) -> Tabulated:
    total = max(1, int(census.pixels[:IGNORED].sum()))
    rows = tuple(
        (name, int(census.pixels[label]) / total, int(census.images[label])) for label, name in enumerate(names)
    )
    ignored = int(census.pixels[IGNORED]) / max(1, int(census.pixels.sum()))
    return Tabulated(
        f"Classes of {len(census.good):,} training masks; {ignored:.1%} of their pixels are ignored",
        ("class", "share of pixels", "images"),
        rows,
    )


def default_names(classes: int) -> tuple[str, ...]:
    """Returns class-00, class-01, ..."""
    digits = max(2, len(str(classes - 1)))
    return tuple(f"class-{label:0{digits}d}" for label in range(classes))


def read_names(path: str) -> tuple[str, ...]:
    """Reads class names, one per line, in label order.

    Raises:
        UsageError: The file cannot be read, is empty, names a class twice, or names more than 255.
    """
    try:
        names = tuple(line.strip() for line in read_regular(path).decode("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--classes '{path}' cannot be read: {reason}.", "Give a text file, a name a line.") from None
    twice = [name for name, times in Counter(names).items() if times > 1]
    if not names or twice or len(names) > MOST_CLASSES:
        what = f"names '{twice[0]}' twice" if twice else f"names {len(names)} classes"
        raise UsageError(f"--classes '{path}' {what}.", f"Give 1 to {MOST_CLASSES} names, a line each, all different.")
    return names
