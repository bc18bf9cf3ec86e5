"""Which images go into which shard, and how their classes are stored."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beitcli.data.sources.base import Source
from beitcli.data.sources.formats._tar_index import MAX_CLS_BYTES, class_of_cls
from beitcli.data.sources.splits import is_split
from beitcli.engine.pack.encoding import Encoding
from beitcli.errors import DataError

_SHARDS, _LEAST, _MOST = 64, 250, 5000  # of a split by default; images of a shard
_STEM_WITHOUT_SPLITS = "images"
SHARD_NAME = re.compile(r"[\w+-]+-[0-9]{5,}-of-[0-9]{5,}\.tar")
_COMPONENT_BYTES = 200

# `cls`: a member KEY.cls with the class's name, as in WebDataset. `folder`: CLASS/KEY.jpg, for names that a .cls member
# does not keep, such as 007. None: there are no labels.
LabelLayout = Literal["cls", "folder"] | None


@dataclass(frozen=True)
class Shard:
    """The images `first` to `last` - 1 of a split.

    Attributes:
        split: Number of the split in `Packing.sources`.
    """

    name: str
    split: int
    first: int
    last: int


@dataclass(frozen=True)
class Packing:
    """What each process needs to write shards.

    Attributes:
        folder: Of unfinished shards.
    """

    sources: tuple[Source, ...]
    layouts: tuple[LabelLayout, ...]
    encoding: Encoding
    folder: Path


def plan_shards(parts: Mapping[str | None, Source], images: int | None) -> list[Shard]:
    """Returns the shards of all splits, named as the data sets of the hub: `train-00000-of-00064.tar`.

    Args:
        images: Of a shard; None for the default, which depends on the length of the split alone.
    """
    shards = []
    for number, (split, source) in enumerate(parts.items()):
        each = images or min(_MOST, max(_LEAST, -(-len(source) // _SHARDS)))
        starts = range(0, len(source), each)
        digits = max(5, len(str(len(starts))))  # names in order are shards in order
        for number_in_split, first in enumerate(starts):
            name = f"{stem(split)}-{number_in_split:0{digits}d}-of-{len(starts):0{digits}d}.tar"
            shards.append(Shard(name, number, first, min(first + each, len(source))))
    return shards


def stem(split: str | None) -> str:
    """Returns what the names of a split's shards begin with, which is its name when they are opened as DATA."""
    return re.sub(r"[^\w+-]", "_", split) if split else _STEM_WITHOUT_SPLITS


def label_layout(source: Source) -> LabelLayout:
    """Returns the layout that keeps the names of all classes.

    Raises:
        DataError: There is none.
    """
    classes = source.classes
    if classes is None:
        return None
    odd = next((name for name in classes if not _fits_cls(name)), None)
    if odd is None:
        return "cls"
    refused = next((name for name in classes if not _fits_folder(name)), None)
    if refused is None:
        return "folder"
    raise DataError(
        f"'{source.name}' has the classes {odd!a} and {refused!a}, which no one layout of a shard can hold.",
        "Rename one of them.",
    )


def _fits_cls(name: str) -> bool:
    content = name.encode("utf-8", "surrogateescape")
    return len(content) <= MAX_CLS_BYTES and class_of_cls(content) == name


def _fits_folder(name: str) -> bool:
    is_plain = name not in ("", "..") and name[0] != "." and "/" not in name and "\0" not in name
    return is_plain and not is_split(name) and len(os.fsencode(name)) <= _COMPONENT_BYTES


def members(layout: LabelLayout, key: str, suffix: str, name: str | None) -> Sequence[tuple[str, bytes | None]]:
    """Returns the names of an image's members, the image first, whose content is None here.

    Args:
        name: Of its class.
    """
    if layout == "folder":
        return ((f"{name}/{key}{suffix}", None),)
    if layout == "cls" and name is not None:
        return ((f"{key}{suffix}", None), (f"{key}.cls", name.encode("utf-8", "surrogateescape")))
    return ((f"{key}{suffix}", None),)
