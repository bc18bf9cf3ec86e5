"""Tells how large the shards become, and which images change, before they are written: from a few of the images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from beitcli.engine.events import Note, OnEvent, Warned
from beitcli.engine.pack.encoding import Encoding, encode
from beitcli.engine.pack.plan import Packing, Shard, members
from beitcli.engine.pack.writing import class_name, member_bytes, shard_bytes
from beitcli.errors import BadImage
from beitcli.runtime.metric_text import counted, size_text

_LOOKED_AT = 32  # images


def tell_size(packing: Packing, shards: Sequence[Shard], on_event: OnEvent) -> None:
    """Tells how large shards that are missing become, and whether images are encoded as JPEG.

    It also imports the decoder, once for all processes. What can be read at random is looked at over all shards. Of
    what is downloaded by the block only the first images are, which the first shard needs anyway.
    """
    stored = [each for shard, index in _looked_at(packing, shards) if (each := _stored(packing, shard, index))]
    if not stored:
        return
    if changed := _changed(packing.encoding, sum(not each.is_exact for each in stored), len(stored)):
        on_event(Note(changed))
    mean = sum(each.bytes for each in stored) / len(stored)
    expected = sum(shard_bytes(round(mean * (shard.last - shard.first))) for shard in shards)
    free = shutil.disk_usage(packing.folder).free
    told = f"About {size_text(expected)}; {size_text(free)} are free in '{packing.folder.parent}'"
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


def _changed(encoding: Encoding, encoded: int, looked_at: int) -> str:
    """Returns a line about images whose pixels become JPEG; empty without such.

    Args:
        encoded: How many of those that were looked at.
    """
    if not encoded:
        return ""
    some = "Images" if encoded == looked_at else f"{encoded} of {counted(looked_at, 'image')} looked at"
    verb = "is" if encoded == 1 != looked_at else "are"
    way_out = "keeps them" if encoding.short_side is None else "changes no more than their size"
    return f"{some} {verb} stored as JPEG of quality {encoding.quality}, which changes pixels; --encode raw {way_out}."


class _Stored(NamedTuple):
    """What becomes of an image.

    Attributes:
        bytes: Of its members in a shard.
        is_exact: Whether they hold the pixels as they are, or the file itself.
    """

    bytes: int
    is_exact: bool


def _stored(packing: Packing, shard: Shard, index: int) -> _Stored | None:
    """Encodes an image as its shard will hold it; None of one that cannot be read."""
    source, layout = packing.sources[shard.split], packing.layouts[shard.split]
    try:
        encoded = encode(source.read(index), packing.encoding, source.intensity)
    except BadImage:
        return None
    parts = members(layout, "", packing.encoding.suffix, class_name(source, index))
    size = sum(member_bytes(len(encoded.data if content is None else content)) for _, content in parts)
    return _Stored(size, encoded.is_copy or packing.encoding.kind == "raw")
