"""`beit pack`: opens every split of DATA, writes its shards over processes, and reads the result as DATA."""

from __future__ import annotations

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
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.sources.every_split import open_every_split
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats._packed import FORMAT
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, Progress, Warned, ignore, openings
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.pack.compare import compare
from beitcli.engine.pack.encoding import Encoding
from beitcli.engine.pack.folder import PackFolder
from beitcli.engine.pack.plan import Packing, Shard, label_layout, plan_shards
from beitcli.engine.pack.refusals import refuse_annotations, refuse_inside
from beitcli.engine.pack.size import tell_size
from beitcli.engine.pack.writing import Written, write_shard
from beitcli.engine.process_pool import process_count, run_in_order
from beitcli.engine.trainer.bad_images import refuse_many_bad

_ALL = "all"  # of data without splits, in the report and in pack.json
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
    layouts = tuple(map(label_layout, sources))
    inputs = ProtectedInputs(config, Concat(sources))
    folder = PackFolder(Path(config.output), _kind(config, sources), inputs, overwrite=config.overwrite)
    _check(config, folder, len(shards), on_event)
    packing = Packing(sources, layouts, Encoding(config.encode, config.quality, config.short_side), folder.partial)
    try:
        _write(config, packing, shards, folder, on_event)
        written = {shard: folder.finished[shard.name] for shard in shards}
        _finish(config, parts, packing, written, folder, on_event)
    except BaseException:
        on_event(Note(f"{len(folder.finished):,} of {len(shards):,} shards are finished; the same command goes on."))
        raise
    return _report(config, parts, written, time.monotonic() - began)


def _check(config: PackConfig, folder: PackFolder, shards: int, on_event: OnEvent) -> None:
    """Looks at the shards of an earlier command."""
    checked = 0

    def tell(name: str, is_whole: bool) -> None:
        nonlocal checked
        checked += 1
        on_event(Progress("checking finished shards", checked, shards, "shard"))
        if not is_whole:
            on_event(Warned(f"'{name}' is not what was written, and is made again."))

    folder.check(process_count(config.workers), tell)


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
    return {"format": FORMAT, **given, "contents": [contents_stamp(source) for source in sources]}


def _write(
    config: PackConfig, packing: Packing, shards: Sequence[Shard], folder: PackFolder, on_event: OnEvent
) -> None:
    """Writes the shards that are missing. Raises DataError if too many images, or all, cannot be read."""
    missing = [shard for shard in shards if shard.name not in folder.finished]
    total = sum(map(len, packing.sources))
    bad = [record for shard in shards if shard.name in folder.finished for record in folder.finished[shard.name].bad]
    hint = "Mend them, take the list of `beit doctor -o good.tsv` as DATA, or raise --max-bad."
    refuse_many_bad(bad, total, config.max_bad, hint)
    if len(missing) < len(shards):
        kept = sum(shard.last - shard.first for shard in shards) - sum(each.last - each.first for each in missing)
        on_event(Note(f"Going on: {len(shards) - len(missing):,} shards with {kept:,} images are finished."))
    tell_size(packing, missing, on_event)
    processes = min(process_count(config.workers), len(missing))
    if config.workers < 0 and processes == 1:
        processes = 0
    done = total - sum(shard.last - shard.first for shard in missing)
    for shard, written in zip(missing, run_in_order(write_shard, packing, missing, processes), strict=True):
        folder.add(written)
        done += shard.last - shard.first
        on_event(Progress("packing", done, total, "image"))
        if written.bad:
            bad += written.bad
            refuse_many_bad(bad, total, config.max_bad, hint)


def _finish(
    config: PackConfig,
    parts: dict[str | None, Source],
    packing: Packing,
    written: dict[Shard, Written],
    folder: PackFolder,
    on_event: OnEvent,
) -> None:
    """Reads the shards as DATA while they are no pack yet, then makes them one."""
    folder.describe(_manifest(config, parts, written))
    tell = openings(on_event)
    compare(packing, list(parts), written, lambda *progress: tell(*progress) if progress[-1] else None)  # no remarks
    folder.finish([shard.name for shard in written])


def _manifest(config: PackConfig, parts: dict[str | None, Source], written: dict[Shard, Written]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for number, (name, source) in enumerate(parts.items()):
        of_split = [each for shard, each in written.items() if shard.split == number]
        splits[name or _ALL] = {
            "images": sum(each.images for each in of_split),
            "classes": None if source.classes is None else list(source.classes),
            "shards": [{"file": each.file, "images": each.images, "sha256": each.sha256} for each in of_split],
        }
    settings = {name: getattr(config, name) for name in ("encode", "quality", "short_side", "limit")}
    return {"format": FORMAT, "data": list(config.data), **settings, "splits": splits}


def _report(
    config: PackConfig,
    parts: dict[str | None, Source],
    written: dict[Shard, Written],
    seconds: float,
) -> PackReport:
    images = [
        sum(each.images for shard, each in written.items() if shard.split == number) for number in range(len(parts))
    ]
    total, of_data, encoded = (
        sum(getattr(each, name) for each in written.values()) for name in ("bytes", "source_bytes", "encoded")
    )
    classes = [len(source.classes) for source in parts.values() if source.classes is not None]
    return PackReport(
        output=config.output,
        encode=config.encode,
        short_side=config.short_side,
        images=sum(images),
        bad=sum(len(each.bad) for each in written.values()),
        classes=max(classes) if classes else None,
        splits=dict(zip([name or _ALL for name in parts], images, strict=True)),
        shards=len(written),
        copied=sum(each.copied for each in written.values()),
        bytes=total,
        source_bytes=of_data,
        ratio=total / of_data,
        level_error=sum(each.levels for each in written.values()) / encoded if encoded else None,
        seconds=seconds,
    )
