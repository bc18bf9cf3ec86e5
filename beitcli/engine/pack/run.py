"""`beit pack`: opens every split of DATA, writes its shards over processes, and reads the result as DATA."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beitcli.config.fields import settings_of
from beitcli.config.pack import PackConfig
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.sources.every_split import open_every_split
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, Progress, Warned, ignore, openings
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.pack.encoding import Encoding, encode
from beitcli.engine.pack.folder import PackFolder
from beitcli.engine.pack.plan import Packing, Shard, label_layout, plan_shards
from beitcli.engine.pack.refusals import refuse_annotations, refuse_inside
from beitcli.engine.pack.writing import Written, write_shard
from beitcli.engine.process_pool import process_count, run_in_order
from beitcli.engine.trainer.bad_images import refuse_many_bad
from beitcli.errors import BadImage, DataError, StorageError

_FORMAT = "beit-pack-1"
_LOOKED_AT = 32  # images, for the size
_WITHOUT_SPLITS = "all"
_NOT_OF_THE_KIND = ("output", "overwrite", "workers", "max_bad")  # settings that may differ when a pack goes on


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """Result of a pack.

    Attributes:
        splits: Images of each split; `all` of data without splits.
        bad: Images that could not be read, and are left out.
        copied: Images that are the files of DATA, byte for byte.
        bytes: Of all shards; `source_bytes`: of the files whose images they hold; `ratio`: the first by the second.
        level_error: Mean difference of what was encoded as JPEG from its pixels, in levels of 255; None without such.
    """

    output: str
    encode: str
    short_side: int | None
    images: int
    bad: int
    classes: int | None
    splits: dict[str, int]
    shards: int
    copied: int
    bytes: int
    source_bytes: int
    ratio: float
    level_error: float | None
    seconds: float


def pack(config: PackConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None) -> PackReport:
    """Writes DATA into shards, and returns what they hold. A pack that was stopped goes on.

    Raises:
        DataError: DATA is missing or empty, or too many images cannot be read.
        UsageError: DATA has masks or boxes, or the folder holds anything but this pack.
        StorageError: The disk is full, or a shard reads back otherwise than it was written.
    """
    began = time.monotonic()
    refuse_inside(config.output, config.data)
    parts = _opened(config, on_event, stdin)
    sources = tuple(parts.values())
    for source in sources:
        refuse_annotations(source, config)
    shards = plan_shards(parts, config.shard_images)
    inputs = ProtectedInputs(config, sources[0])
    folder = PackFolder(Path(config.output), _kind(config, sources), inputs, overwrite=config.overwrite)
    for number, (name, is_whole) in enumerate(folder.check(process_count(config.workers)), start=1):
        on_event(Progress("checking finished shards", number, len(shards), "shard"))
        if not is_whole:
            on_event(Warned(f"'{name}' is not what was written, and is made again."))
    encoding = Encoding(config.encode, config.quality, config.short_side)
    packing = Packing(sources, tuple(map(label_layout, sources)), encoding, folder.partial)
    try:
        _write(config, packing, shards, folder, on_event)
    except BaseException:
        on_event(Note(f"{len(folder.finished)} of {len(shards)} shards are finished; the same command goes on."))
        raise
    written = [folder.finished[shard.name] for shard in shards]
    folder.finish(_manifest(config, parts, shards, written), [shard.name for shard in shards])
    _read_again(config, parts, shards, written, on_event)
    return _report(config, parts, shards, written, time.monotonic() - began)


def _opened(config: PackConfig, on_event: OnEvent, stdin: BinaryIO | None) -> dict[str | None, Source]:
    request = Request.of(config, stdin=stdin, on_progress=openings(on_event), tells_splits=False)
    parts = open_every_split(config.data, request)
    for name, source in parts.items():
        if config.limit is not None and config.limit < len(source):
            parts[name] = Subset(source, np.sort(select_limit(source, config.limit, config.seed)))
    return parts


def _kind(config: PackConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """Returns what two commands have in common of which one may go on with the other's shards."""
    names = [name for name in settings_of(PackConfig) if name not in _NOT_OF_THE_KIND]
    given = {name: getattr(config, name) for name in names}
    given["data"] = list(config.data)
    return {"format": _FORMAT, **given, "contents": [contents_stamp(source) for source in sources]}


def _write(
    config: PackConfig, packing: Packing, shards: Sequence[Shard], folder: PackFolder, on_event: OnEvent
) -> None:
    """Writes the shards that are missing."""
    missing = [shard for shard in shards if shard.name not in folder.finished]
    total = sum(map(len, packing.sources))
    if len(missing) < len(shards):
        kept = sum(shard.last - shard.first for shard in shards) - sum(each.last - each.first for each in missing)
        on_event(Note(f"Going on: {len(shards) - len(missing)} shards with {kept:,} images are finished."))
    _tell_size(packing, missing, on_event)  # also imports the decoder, once for all processes
    processes = min(process_count(config.workers), len(missing))
    if config.workers < 0 and processes == 1:
        processes = 0
    done = total - sum(shard.last - shard.first for shard in missing)
    hint = "Mend them, take the list of `beit doctor -o good.tsv` as DATA, or raise --max-bad."
    for shard, written in zip(missing, run_in_order(write_shard, packing, missing, processes), strict=True):
        folder.add(written)
        done += shard.last - shard.first
        on_event(Progress("packing", done, total, "image"))
        bad = [(0, path, reason) for each in folder.finished.values() for path, reason in each.bad]
        refuse_many_bad(bad, total, config.max_bad, hint)


def _tell_size(packing: Packing, shards: Sequence[Shard], on_event: OnEvent) -> None:
    """Tells how large the missing shards become, from a few of their images."""
    ends = np.cumsum([shard.last - shard.first for shard in shards])
    images = int(ends[-1]) if len(ends) else 0
    sizes = []
    for place in np.linspace(0, images - 1, min(_LOOKED_AT, images)).astype(int).tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        source, index = packing.sources[shards[number].split], shards[number].last - (int(ends[number]) - place)
        try:
            sizes.append(len(encode(source.read(index), packing.encoding, source.intensity).data))
        except BadImage:
            continue
    if not sizes:
        return
    expected, free = images * sum(sizes) / len(sizes), shutil.disk_usage(packing.folder).free
    told = f"About {_size(expected)}; {_size(free)} are free in '{packing.folder.parent}'"
    on_event(Note(f"{told}.") if expected < free else Warned(f"{told}: the disk is likely to fill."))


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _manifest(
    config: PackConfig, parts: dict[str | None, Source], shards: Sequence[Shard], written: Sequence[Written]
) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for number, (name, source) in enumerate(parts.items()):
        of_split = [each for shard, each in zip(shards, written, strict=True) if shard.split == number]
        splits[name or _WITHOUT_SPLITS] = {
            "images": sum(each.images for each in of_split),
            "classes": None if source.classes is None else list(source.classes),
            "shards": [{"file": each.file, "images": each.images, "sha256": each.sha256} for each in of_split],
        }
    settings = {name: getattr(config, name) for name in ("encode", "quality", "short_side", "limit")}
    return {"format": _FORMAT, "data": list(config.data), **settings, "splits": splits}


def _read_again(
    config: PackConfig,
    parts: dict[str | None, Source],
    shards: Sequence[Shard],
    written: Sequence[Written],
    on_event: OnEvent,
) -> None:
    """Opens the pack as DATA, and compares images, classes and labels of each split with those that were packed."""
    for number, (name, source) in enumerate(parts.items()):
        of_split = [each for shard, each in zip(shards, written, strict=True) if shard.split == number]
        if not sum(each.images for each in of_split):
            continue
        paths = [os.path.join(config.output, each.file) for each in of_split]
        packed = open_data(paths, on_progress=openings(on_event))
        left_out = {path for each in of_split for path, _ in each.bad}
        whole = range(len(source))
        kept = [index for index in whole if source.path(index) not in left_out] if left_out else whole
        same = len(packed) == len(kept) and packed.classes == source.classes
        if not same or any(packed.label(place) != source.label(index) for place, index in enumerate(kept)):
            raise StorageError(
                f"'{config.output}' has other images or labels in {name or 'it'} than '{source.name}'.",
                "Pack it again into another folder; if that is no help, report it.",
            )


def _report(
    config: PackConfig,
    parts: dict[str | None, Source],
    shards: Sequence[Shard],
    written: Sequence[Written],
    seconds: float,
) -> PackReport:
    images = [sum(each.images for shard, each in zip(shards, written, strict=True) if shard.split == number)
              for number in range(len(parts))]  # fmt: skip
    total, of_data, encoded = (
        sum(getattr(each, name) for each in written) for name in ("bytes", "source_bytes", "encoded")
    )
    if not sum(images):
        raise DataError("No image could be read.", "`beit doctor DATA` says why of each.")
    classes = [len(source.classes) for source in parts.values() if source.classes is not None]
    return PackReport(
        output=config.output,
        encode=config.encode,
        short_side=config.short_side,
        images=sum(images),
        bad=sum(len(each.bad) for each in written),
        classes=max(classes) if classes else None,
        splits=dict(zip([name or _WITHOUT_SPLITS for name in parts], images, strict=True)),
        shards=len(shards),
        copied=sum(each.copied for each in written),
        bytes=total,
        source_bytes=of_data,
        ratio=total / of_data,
        level_error=sum(each.levels for each in written) / encoded if encoded else None,
        seconds=seconds,
    )
