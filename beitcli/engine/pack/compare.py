"""Opens a folder of shards as DATA, as every command will, and compares it with what was packed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import canonical
from beitcli.engine.pack.plan import Packing, Shard, members, stem
from beitcli.engine.pack.writing import Written, class_name
from beitcli.errors import StorageError


def compare(
    packing: Packing,
    names: Sequence[str | None],
    written: Mapping[Shard, Written],
    on_progress: OnProgress | None = None,
) -> None:
    """Compares each split of `packing.folder` with its source: which images it has in which order, classes and labels.

    An image is told by the name of its member, its index in DATA; its content was compared when its shard was read
    back.

    Args:
        names: Of the splits.

    Raises:
        StorageError: They differ.
    """
    folder = str(packing.folder)
    splits = {canonical(stem(name)) for name in names if name is not None}
    for number, (name, source) in enumerate(zip(names, packing.sources, strict=True)):
        of_split = {shard: each for shard, each in written.items() if shard.split == number}
        if not sum(each.images for each in of_split.values()):
            continue
        packed = open_data([folder], split=None if name is None else stem(name), on_progress=on_progress)
        images = sum(each.images for each in of_split.values())
        same = len(packed) == images and packed.classes == source.classes and packed.splits == splits
        if not same or not all(
            packed.label(position) == source.label(index)
            and packed.path(position) == os.path.join(folder, shard.name, _member(packing, source, shard, index))
            for position, (shard, index) in enumerate(_kept(of_split))
        ):
            raise StorageError(
                f"The shards in '{folder}' have other images or labels in {name or 'them'} than '{source.name}'.",
                "Pack it again into another folder; if that is no help, report it.",
            )


def _kept(of_split: Mapping[Shard, Written]) -> Iterator[tuple[Shard, int]]:
    """Yields the images of a split that are not left out, in order."""
    for shard, each in of_split.items():
        left_out = {index for index, _, _ in each.bad}
        yield from ((shard, index) for index in range(shard.first, shard.last) if index not in left_out)


def _member(packing: Packing, source: Source, shard: Shard, index: int) -> str:
    layout = packing.layouts[shard.split]
    return members(layout, f"{index:08d}", packing.encoding.suffix, class_name(source, index))[0][0]
