"""Tells how large the shards become before they are written, from a few of their images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from beitcli.engine.events import Note, OnEvent, Warned
from beitcli.engine.pack.encoding import encode
from beitcli.engine.pack.plan import Packing, Shard, members
from beitcli.engine.pack.writing import class_name, member_bytes, shard_bytes
from beitcli.errors import BadImage

_LOOKED_AT = 32  # images


def tell_size(packing: Packing, shards: Sequence[Shard], on_event: OnEvent) -> None:
    """Tells how large shards that are missing become; also imports the decoder, once for all processes.

    What can be read at random is looked at over all shards. Of what is downloaded by the block only the first images
    are, which the first shard needs anyway.
    """
    sizes = [size for shard, index in _looked_at(packing, shards) if (size := _size_of(packing, shard, index))]
    if not sizes:
        return
    mean = sum(sizes) / len(sizes)
    expected = sum(shard_bytes(round(mean * (shard.last - shard.first))) for shard in shards)
    free = shutil.disk_usage(packing.folder).free
    told = f"About {_words(expected)}; {_words(free)} are free in '{packing.folder.parent}'"
    on_event(Note(f"{told}.") if expected < free else Warned(f"{told}: the disk is likely to fill."))


def _looked_at(packing: Packing, shards: Sequence[Shard]) -> Iterator[tuple[Shard, int]]:
    """Yields a few images: their shard, and index in its split."""
    if not shards:
        return
    blocks = [source.blocks() for source in packing.sources]
    if any(each is not None and each.are_remote for each in blocks):
        first = shards[0]
        yield from ((first, index) for index in range(first.first, min(first.last, first.first + _LOOKED_AT)))
        return
    ends = np.cumsum([shard.last - shard.first for shard in shards])
    images = int(ends[-1])
    for position in np.linspace(0, images - 1, min(_LOOKED_AT, images)).astype(int).tolist():
        number = int(np.searchsorted(ends, position, side="right"))
        yield shards[number], shards[number].last - (int(ends[number]) - position)


def _size_of(packing: Packing, shard: Shard, index: int) -> int:
    """Returns the bytes of an image's members in a shard; 0 of one that cannot be read."""
    source, layout = packing.sources[shard.split], packing.layouts[shard.split]
    try:
        stored = len(encode(source.read(index), packing.encoding, source.intensity).data)
    except BadImage:
        return 0
    parts = members(layout, "", packing.encoding.suffix, class_name(source, index))
    return sum(member_bytes(stored if content is None else len(content)) for _, content in parts)


def _words(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
