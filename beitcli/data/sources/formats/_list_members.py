"""Lines of a list that name images in shards, as this program names them: `shard.tar/cat/1.jpg`, `file.parquet/17`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import Labeller, require_whole_labels
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats.parquet import ParquetSource
from beitcli.data.sources.formats.tar import TarSource
from beitcli.data.sources.subset import Subset
from beitcli.errors import DataError

_IN_SHARD = re.compile(rb"(.+?\.(?:tar|parquet))/.+", re.IGNORECASE | re.DOTALL)


def shard_of(path: bytes, base: bytes) -> bytes | None:
    """Returns the shard that a line names an image of, as it is found from here; None for a file of its own.

    Args:
        base: Folder that is searched before the working directory.
    """
    found = _IN_SHARD.fullmatch(path)
    if found is None:
        return None
    below = os.path.join(base, found[1])
    return next((shard for shard in (below, found[1]) if os.path.isfile(shard)), None)


class ListedMembers(Subset):
    """Images of a list, some of which lie in shards, in the order of the list and with its labels."""

    def __init__(
        self,
        paths: Sequence[bytes],
        shards: Sequence[bytes | None],
        *,
        files: Source | None,
        name: str,
        labels: Sequence[str | None],
        labelled: bool,
    ) -> None:
        """
        Args:
            paths: Of each line.
            shards: `shard_of` each.
            files: Source of the lines that are files of their own, in order; None if there are none.
            labels: Class name of each line, or None.
            labelled: Whether labels are required.

        Raises:
            DataError: A shard cannot be read, has no such image, or some lines have no label.
        """
        parts = [] if files is None else [files]
        of_files = 0
        place_of: dict[str, int] = {}
        total = len(files) if files is not None else 0
        for named_shard in dict.fromkeys(each for each in shards if each is not None):
            for source in _opened(os.fsdecode(named_shard)):
                place_of |= {source.path(index): total + index for index in range(len(source))}
                parts.append(source)
                total += len(source)
        indices = []
        for path, shard in zip(paths, shards, strict=True):
            if shard is None:
                indices.append(of_files)
                of_files += 1
                continue
            found = _IN_SHARD.fullmatch(path)
            named = os.fsdecode(shard + path[found.end(1) :]) if found else ""
            if named not in place_of:
                raise DataError(f"'{name}' names '{named}', which is not in that shard.", "Write the list again.")
            indices.append(place_of[named])
        super().__init__(parts[0] if len(parts) == 1 else Concat(parts), np.array(indices, dtype=np.int64))
        labeller = Labeller()
        for label in labels:
            labeller.add(label)
        self.name, self.splits = name, frozenset()
        self.classes, self._labels = labeller.finish()
        if labelled and self.classes is None:
            require_whole_labels(name, self._labels, os.fsdecode(paths[int(np.argmin(self._labels))]))

    def identities(self, indices: np.ndarray) -> Iterator[bytes]:
        return Source.identities(self, indices)  # the labels are the list's, not those of the shards

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])


def _opened(shard: str) -> list[Source]:
    """Opens all images of a shard; one that holds several splits gives a source for each."""
    if shard.lower().endswith(".parquet"):
        return [ParquetSource([shard])]
    try:
        first = TarSource([shard], Request())
    except DataError:
        first = TarSource([shard], Request(role="eval"))
    if not first.splits:
        return [first]
    return [TarSource([shard], Request(split=split)) for split in sorted(first.splits)]
