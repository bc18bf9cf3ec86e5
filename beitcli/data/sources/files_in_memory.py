"""`--in-memory`: a source whose encoded files are read once and held, for disks and networks that are slow each epoch.

Loader processes are forked and share the memory. Order, keys, labels and pixels are those of the source, so a run with
and without it is the same. Memory: the bytes of the files, and 12 an image; 24 while the last is read.
"""

from __future__ import annotations

from array import array

import numpy as np

from beitcli.data.sources.base import Blocks, OnProgress, Source
from beitcli.errors import BadImage, DataError
from beitcli.runtime.compute.free_memory import free_memory
from beitcli.runtime.metric_text import size_text

_CHUNK = 1 << 26  # bytes of an allocation; a larger file has its own
_TELL_EVERY = 256  # images
_READ_TOGETHER = 256
_SHARE = 0.5  # of the free memory; the model, the batches and the page cache need the rest


class FilesInMemory(Source):
    """The images of another source, from memory.

    Args:
        source: Any; its subsets hold what they select.
        processes: Of this machine that hold as much.
        on_progress: Receives the number of images read, then a remark.

    Raises:
        DataError: The files are larger than half of the free memory.
    """

    def __init__(self, source: Source, *, processes: int = 1, on_progress: OnProgress | None = None) -> None:
        self.source = source
        self.name, self.classes, self.splits = source.name, source.classes, source.splits
        self.label_names, self.intensity = source.label_names, source.intensity
        self._bad: dict[int, str] = {}
        self._chunks: list[np.ndarray] = []
        chunk_of, ends = array("i"), array("q")
        free = free_memory()
        most = None if free is None else int(_SHARE * free / processes)
        if most is not None:
            _refuse_known_sizes(source, most)
        total, filled = 0, 0
        for index in range(len(source)):
            data = self._read_once(index)
            total += len(data)
            if most is not None and total > most:
                raise _too_large(source, total * len(source) / (index + 1), most)
            if not self._chunks or filled + len(data) > len(self._chunks[-1]):
                self._chunks.append(np.empty(max(_CHUNK, len(data)), np.uint8))
                filled = 0
            self._chunks[-1][filled : filled + len(data)] = np.frombuffer(data, np.uint8)
            filled += len(data)
            chunk_of.append(len(self._chunks) - 1)
            ends.append(filled)
            if on_progress is not None and (index % _TELL_EVERY == _TELL_EVERY - 1 or index + 1 == len(source)):
                on_progress("reading into memory", index + 1, len(source), "image")
        self._chunk_of, self._ends = np.array(chunk_of, np.int32), np.array(ends, np.int64)
        if on_progress is not None:
            on_progress(f"In memory: {len(source):,} images of {size_text(total)}.", 0, 0, "")

    def _read_once(self, index: int) -> bytes:
        if index % _READ_TOGETHER == 0:
            self.source.prefetch(np.arange(index, min(index + 2 * _READ_TOGETHER, len(self.source))))
        try:
            return self.source.read(index)
        except BadImage as error:
            self._bad[index] = error.message
            return b""

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        if index in self._bad:
            raise BadImage(self._bad[index])
        begin, end, chunk = self._bounds(index)
        return self._chunks[chunk][begin:end].tobytes()

    def stored_bytes(self, index: int) -> int | None:
        begin, end, _ = self._bounds(index)
        return end - begin

    def _bounds(self, index: int) -> tuple[int, int, int]:
        chunk, end = int(self._chunk_of[index]), int(self._ends[index])
        is_first = index == 0 or self._chunk_of[index - 1] != chunk
        return 0 if is_first else int(self._ends[index - 1]), end, chunk

    def path(self, index: int) -> str:
        return self.source.path(index)

    def label(self, index: int) -> int | None:
        return self.source.label(index)

    def label_vector(self, index: int) -> np.ndarray | None:
        return self.source.label_vector(index)

    def label_vectors(self) -> np.ndarray:
        return self.source.label_vectors()

    def global_index(self, index: int) -> int:
        return self.source.global_index(index)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def inner(self) -> tuple[Source, ...]:
        return (self.source,)

    def blocks(self) -> Blocks | None:
        """Returns the blocks of the source, as the order of training follows from them; none is remote any more."""
        blocks = self.source.blocks()
        return None if blocks is None else Blocks(blocks.lengths, blocks.together)


def _refuse_known_sizes(source: Source, most: int) -> None:
    """Raises DataError before anything is read, where the sizes of files are known, as in shards and folders."""
    whole = sum(source.stored_bytes(index) or 0 for index in range(len(source)))
    if whole > most:
        raise _too_large(source, whole, most)


def _too_large(source: Source, whole: float, most: int) -> DataError:
    return DataError(
        f"--in-memory: the {len(source):,} images of '{source.name}' take about {size_text(whole)}; "
        f"{size_text(most)}, half of what is free, are allowed for a process.",
        "Leave it out, or shrink the images with `beit pack DATA --short-side 256 -o DIR`.",
    )
