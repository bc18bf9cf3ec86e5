"""Format of tar shards with random access: an image is one `pread` at the offset in the index; nothing is extracted.

The class of an image is its parent folder, or in WebDataset shards the content of the `.cls` member with its key.
Memory per image: 33 bytes and the member name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import (
    PackedNames,
    count_of_images,
    number_classes,
    require_readable,
    require_whole_labels,
)
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._tar_index import index_shard
from beitcli.data.sources.splits import (
    WORDS,
    are_split_folders,
    canonical,
    choose_split,
    files_of_split,
    has_train_and_val,
)
from beitcli.errors import BadImage, DataError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_OPEN_SHARDS = 128  # further shards are opened for every read: macOS allows 256 files per process


class TarSource(Source):
    """Image members of several shards, in the order of shards and members."""

    def __init__(self, shards: Sequence[str], request: Request) -> None:
        """
        Args:
            shards: Paths of uncompressed tar files.
            request: Its split is selected if top folders with names of splits, or the names of shards, tell the splits.

        Raises:
            DataError: A shard is missing, compressed or damaged, or there are no images, or none in that split.
        """
        self.name = request.name or shards[0]
        self._shards = list(shards)
        self._files: dict[int, int] = {}
        indexes = [index_shard(shard, request.on_progress) for shard in self._shards]
        lengths = [len(index.names) for index in indexes]
        if not sum(lengths):
            raise DataError(f"No images in '{self.name}'.", hint="Members are images by their names, such as .jpg.")
        self._shard_of = np.repeat(np.arange(len(indexes), dtype=np.int32), lengths)
        tops = _joined([index.tops for index in indexes])
        in_top = _joined([index.in_top for index in indexes])
        told = _are_splits(tops, in_top)
        kept = self._kept(tops if told else None, request)
        self._names = PackedNames.joined([index.names for index in indexes]).take(kept)
        self._shard_of = self._shard_of[kept]
        self._offsets = _joined([index.offsets for index in indexes])[kept]
        self._sizes = _joined([index.sizes for index in indexes])[kept]
        class_names = [name for index in indexes for name in index.class_names]
        starts = np.cumsum([0, *(len(index.class_names) for index in indexes)])
        codes = _joined(
            [np.where(index.codes < 0, -1, index.codes + start) for index, start in zip(indexes, starts, strict=False)]
        )
        if told:  # the top folder is a split, not a class
            codes[in_top] = -1
        self.classes, self._labels = number_classes(class_names, codes[kept])
        if request.labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def _kept(self, tops: np.ndarray | None, request: Request) -> np.ndarray | slice:
        """Returns the indices of the images of the split, `slice(None)` for all; sets `splits`.

        Args:
            tops: (n,) int8 indices of the top folders in WORDS; None if these are not splits.
        """
        if tops is None:
            files, self.splits = files_of_split(self.name, self._shards, request, by_default=False)
            read = set(files)
            numbers = [number for number, shard in enumerate(self._shards) if shard in read]
            return slice(None) if files == self._shards else np.flatnonzero(np.isin(self._shard_of, numbers))
        there, outside = _names_of(tops), int((tops < 0).sum())
        self.splits = frozenset(map(canonical, there))
        chosen = choose_split(self.name, there, request, outside=count_of_images(outside))
        if set(chosen) == set(there) and not outside:
            return slice(None)
        return np.flatnonzero(np.isin(tops, [WORDS.index(name) for name in chosen]))

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]]}/{self._names[index].decode('utf-8', 'surrogateescape')}"

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        require_readable(size)
        try:
            data = self._pread(int(self._shard_of[index]), size, int(self._offsets[index]))
        except OSError as error:
            raise BadImage(f"its shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise BadImage("its shard has become shorter")
        return data

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        """Reads at an offset without a file position, so forks and threads can share the open files."""
        file = self._files.get(shard)
        if file is None:
            descriptor = os.open(self._shards[shard], os.O_RDONLY)
            if len(self._files) < _MAX_OPEN_SHARDS:
                file = self._files.setdefault(shard, descriptor)
            if file != descriptor:  # too many are open, or another thread was faster
                try:
                    return os.pread(descriptor, size, offset)
                finally:
                    os.close(descriptor)
        return os.pread(file, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates arrays; returns a single one without a copy, as it may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _names_of(tops: np.ndarray) -> list[str]:
    """Returns the top folders that have names of splits."""
    return [WORDS[number] for number in np.unique(tops) if number >= 0]


def _are_splits(tops: np.ndarray, in_top: np.ndarray) -> bool:
    """Whether the top folders are splits, by the rules for folders; takes `TarIndex.tops` and `TarIndex.in_top`."""
    names = _names_of(tops)
    deep = set(_names_of(tops[~in_top]))
    return has_train_and_val(map(canonical, names)) or (tops.min() >= 0 and are_split_folders(names, deep.__contains__))


FORMAT = Format(
    looks=".tar shards",
    labels="tar members CLASS/image.jpg or KEY.cls",
    recognizes=lambda path: path.lower().endswith(_SUFFIXES),
    open=lambda paths, request: [TarSource(paths, request)],
    rank=20,
    finds_splits=True,
)
