"""Tar shards read at random: an image is one `pread` where the shard's index says; nothing is extracted.

The class of an image is its parent folder, or in WebDataset shards what the `.cls` member of its key says.
An image costs 33 bytes and its member's name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.files import PackedNames, choose_split, number_classes, require_readable, require_whole_labels
from beitcli.data.sources.formats.tar_index import SPLITS, index_shard
from beitcli.errors import BadImage, DataError

_MAX_OPEN_SHARDS = 128  # past that a shard is opened for every read: macOS allows a process 256 files


class TarSource(Source):
    """Image members of several shards, in the order of the shards and of the members in them."""

    def __init__(
        self,
        shards: Sequence[str],
        *,
        name: str = "",
        split: str | None = None,
        role: str = "train",
        labelled: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            shards: Paths of uncompressed tar files.
            name: The DATA reference; the first shard where it is empty.
            split: Which of the top folders `train`, `val` and `test` to take, where every image lies in one.
            role: "train" or "eval"; chooses where `split` is None and the shards hold several splits.
            labelled: Whether labels are needed, so that images without one are refused.
            on_progress: Told how many bytes of a shard have been looked through.

        Raises:
            DataError: a shard is missing, compressed or damaged, there are no images, or not in that split.
        """
        self.name = name or shards[0]
        self._shards = list(shards)
        self._files: dict[int, int] = {}
        indexes = [index_shard(shard, on_progress) for shard in self._shards]
        lengths = [len(index.names) for index in indexes]
        if not sum(lengths):
            raise DataError(f"No images in '{self.name}'.", hint="Members are images by their names, such as .jpg.")
        kept = _in_split(self.name, _joined([index.tops for index in indexes]), split, role)
        self._names = PackedNames.joined([index.names for index in indexes]).take(kept)
        self._shard_of = np.repeat(np.arange(len(indexes), dtype=np.int32), lengths)[kept]
        self._offsets = _joined([index.offsets for index in indexes])[kept]
        self._sizes = _joined([index.sizes for index in indexes])[kept]
        class_names = [name for index in indexes for name in index.class_names]
        starts = np.cumsum([0, *(len(index.class_names) for index in indexes)])
        codes = [
            np.where(index.codes < 0, -1, index.codes + start) for index, start in zip(indexes, starts, strict=False)
        ]
        self.classes, self._labels = number_classes(class_names, _joined(codes)[kept])
        if labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

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
        """Reads without moving a file position, so forks and threads may share the open files."""
        file = self._files.get(shard)
        if file is None:
            checkpoint = os.open(self._shards[shard], os.O_RDONLY)
            if len(self._files) < _MAX_OPEN_SHARDS:
                file = self._files.setdefault(shard, checkpoint)
            if file != checkpoint:  # too many are open, or another thread was faster
                try:
                    return os.pread(checkpoint, size, offset)
                finally:
                    os.close(checkpoint)
        return os.pread(file, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One after another; one alone as it is, for it may be large."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _in_split(name: str, tops: np.ndarray, split: str | None, role: str) -> np.ndarray | slice:
    """Indices of the images of the split; of all where the shards do not tell splits apart.

    Args:
        name: The DATA reference.
        tops: (n,) int8, which of SPLITS the image's top folder is, or -1.
        split: `--split`, or None.
        role: "train" or "eval".
    """
    available = [SPLITS[number] for number in np.unique(tops) if number >= 0]
    if tops.min() < 0 or (split is None and len(available) == 1):
        return slice(None)
    return np.flatnonzero(tops == SPLITS.index(choose_split(name, available, split, role)))
