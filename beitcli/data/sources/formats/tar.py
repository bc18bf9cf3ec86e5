"""Format of tar shards with random access: an image is one `pread` at the offset in the index; nothing is extracted.

The class of an image is its parent folder, or in WebDataset shards the content of the `.cls` member with its key.
Memory per image: 33 bytes and the member name; what is stored of sparse files stands in an array of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import (
    PackedNames,
    count_of_images,
    identities,
    number_classes,
    require_readable,
    require_whole_labels,
)
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._packed import declared_classes, in_declared_order
from beitcli.data.sources.formats._tar_fields import Place, read_place
from beitcli.data.sources.formats._tar_index import index_shard, wrapper_of
from beitcli.data.sources.left_aside import LeftAside
from beitcli.data.sources.splits import (
    WORDS,
    are_split_folders,
    canonical,
    choose_split,
    files_of_split,
    has_train_and_val,
    is_split,
    report_unused_splits,
)
from beitcli.errors import BadImage, DataError, ReadFailed
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.regular_files import regular_descriptor

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_SPARSE_BYTES = 536_870_912  # with its holes, which take no place in the shard but do in memory
_MAX_OPEN_SHARDS = 128  # further shards are opened for every read: macOS allows 256 files per process


class TarSource(Source):
    """Image members of several shards, in the order of shards and members."""

    def __init__(self, shards: Sequence[str], request: Request, folder: str | None = None) -> None:
        """
        Args:
            shards: Paths of uncompressed tar files.
            request: Its split is selected if top folders with names of splits, or the names of shards, tell the splits.
            folder: Folder in which the shards were found, and whose default split is taken; None if they were listed.

        Raises:
            DataError: A shard is missing, compressed or damaged, or there are no images, or none in that split.
        """
        self.name = request.name or shards[0]
        self._shards, self._folder = list(shards), folder
        self._files: dict[int, int] = {}
        indexes = [index_shard(shard, request.on_progress) for shard in self._shards]
        lengths = [len(index.names) for index in indexes]
        aside = LeftAside.joined(index.aside for index in indexes)
        if not sum(lengths):
            held = f" It holds {aside.text()}." if aside.text() else ""
            raise DataError(f"No images in '{self.name}'.", f"Members are images by their names, such as .jpg.{held}")
        if remark := aside.remark(self.name):
            request.say(remark)
        self._shard_of = np.repeat(np.arange(len(indexes), dtype=np.int32), lengths)
        tops = _joined([index.tops for index in indexes])
        in_top = _joined([index.in_top for index in indexes])
        told = _are_splits(tops, in_top)
        names = PackedNames.joined([index.names for index in indexes])
        wrapper = wrapper_of(names) if told and request.split is not None else b""
        inside = _in_folder(names, request.split, wrapper)
        if inside.size:
            kept: np.ndarray | slice = inside
            self.splits = frozenset(map(canonical, _names_of(tops) if told else ()))
            if self.splits:
                report_unused_splits(self.name, [str(request.split)], _names_of(tops), request)
        else:
            kept = self._kept(tops if told else None, request)
        self._names = names.take(kept)
        self._shard_of = self._shard_of[kept]
        rows = np.cumsum([0, *(len(index.pieces) for index in indexes)]).tolist()
        parts = [(index.offsets, row) for index, row in zip(indexes, rows, strict=False)]
        self._offsets = _joined([np.where(part < 0, part - row, part) for part, row in parts])[kept]
        self._pieces = _joined([index.pieces for index in indexes])
        self._sizes = _joined([index.sizes for index in indexes])[kept]
        class_names = [name for index in indexes for name in index.class_names]
        starts = np.cumsum([0, *(len(index.class_names) for index in indexes)])
        codes = _joined(
            [np.where(index.codes < 0, -1, index.codes + start) for index, start in zip(indexes, starts, strict=False)]
        )
        if told:  # the top folder is a split, not a class
            codes[in_top] = -1
        for index in inside.tolist():
            if names[index].strip(b"/").count(b"/") == 1 + wrapper.count(b"/"):
                codes[index] = -1
        self.classes, self._labels = number_classes(class_names, codes[kept])
        if self.classes is not None:
            declared = declared_classes([self._shards[number] for number in np.unique(self._shard_of)])
            self.classes, self._labels = in_declared_order(self.classes, self._labels, declared)
        if request.labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def _kept(self, tops: np.ndarray | None, request: Request) -> np.ndarray | slice:
        """Returns the indices of the images of the split, `slice(None)` for all; sets `splits`.

        Args:
            tops: (n,) int8 indices of the top folders in WORDS; None if these are not splits.
        """
        if tops is None:
            shards = [shard if self._folder is None else os.path.relpath(shard, self._folder) for shard in self._shards]
            files, self.splits = files_of_split(self.name, shards, request, by_default=self._folder is not None)
            read = set(files)
            numbers = [number for number, shard in enumerate(shards) if shard in read]
            return slice(None) if len(files) == len(shards) else np.flatnonzero(np.isin(self._shard_of, numbers))
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
        size, offset = int(self._sizes[index]), int(self._offsets[index])
        require_readable(size)
        try:
            with self._opened(int(self._shard_of[index])) as file:
                data = read_place(file, self._place(offset, size))
        except OSError as error:
            raise ReadFailed(f"its shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise BadImage("its shard has become shorter")
        return data

    def stored_bytes(self, index: int) -> int | None:
        return int(self._sizes[index])

    def _place(self, offset: int, size: int) -> Place:
        if offset >= 0:
            return Place(offset, size)
        if size > _MAX_SPARSE_BYTES:
            raise BadImage(f"{size_text(size)} as a sparse file, more than the {size_text(_MAX_SPARSE_BYTES)} allowed")
        row = last = -1 - offset
        while self._pieces[last, 2]:
            last += 1
        return Place(0, size, tuple(map(tuple, self._pieces[row:last].tolist())))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def identities(self, indices: np.ndarray) -> Iterator[bytes]:
        labels = None if self.classes is None else self._labels
        return identities(self._names, self._prefix, self._shard_of, labels, indices)

    def _prefix(self, shard: int) -> bytes:
        return f"{self._shards[shard]}/".encode(errors="surrogateescape")

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """Opens a shard to be read by offset, without a file position: forks and threads share the open files."""
        file = self._files.get(shard)
        if file is None:
            descriptor = regular_descriptor(self._shards[shard], os.O_RDONLY)
            if len(self._files) < _MAX_OPEN_SHARDS:
                file = self._files.setdefault(shard, descriptor)
            if file != descriptor:  # too many are open, or another thread was faster
                try:
                    yield descriptor
                finally:
                    os.close(descriptor)
                return
        yield file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates arrays; returns a single one without a copy, as it may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _in_folder(names: PackedNames, split: str | None, wrapper: bytes) -> np.ndarray:
    """Returns the indices of the images in the top folder `split` of `wrapper`, if that is no name for splits."""
    if split is None or is_split(split) or "/" in split:
        return np.array([], dtype=np.int64)
    start = wrapper.lstrip(b"/") + os.fsencode(f"{split}/")
    return np.array([at for at, name in enumerate(names) if name.lstrip(b"/").startswith(start)], dtype=np.int64)


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
