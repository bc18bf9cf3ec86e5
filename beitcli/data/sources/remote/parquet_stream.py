"""Streams parquet files from the hub: footers and labels when opening, then row groups on demand.

Footers and labels are cached in one index per file, and the image column of each row group in
`runtime/hub/range_cache.py`, so a second epoch or a resumed run reads from disk. Results do not depend on the cache.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from beitcli.data.sources.base import OnProgress
from beitcli.data.sources.index_cache import index_path, load_index, save_index
from beitcli.data.sources.remote.prefetch import READ_AHEAD
from beitcli.errors import DataError, StorageError
from beitcli.runtime.hub.download import Remote
from beitcli.runtime.hub.http_ranges import read_range
from beitcli.runtime.hub.range_cache import is_cached, limit_bytes, read_cached

if TYPE_CHECKING:
    import pyarrow.parquet as pq

T = TypeVar("T")
R = TypeVar("R")
Range = tuple[int, int]  # bytes [start, end)

LABEL = "label"
_TAIL = 65_536  # bytes at the end of a file that are requested first; most footers are shorter
_MOST_FOOTER = 256_000_000  # bytes; it is held in memory
_FOOTER_END = 8  # bytes of the footer's length and the magic number
_CONNECTIONS = 16  # while opening
_GAP = 32_768  # bytes between two ranges that cost less than another request


class StreamedParquet:
    """A parquet file on the hub.

    Attributes:
        opening: (start, bytes) of the ranges that are read when opening: the footer and the labels.
    """

    def __init__(self, remote: Remote, opening: Sequence[tuple[int, bytes]]) -> None:
        self.remote, self.opening = remote, list(opening)
        self._ranges: dict[str, np.ndarray] = {}

    def open(self) -> RemoteFile:
        """Returns a file from which pyarrow reads schema, metadata and labels."""
        return RemoteFile(self.remote, self.opening)

    def open_group(self, group: int, column: str) -> RemoteFile:
        """Returns a file from which pyarrow reads a column of a row group. Raises DataError if the download fails."""
        start, end = self._range(group, column)
        try:
            return RemoteFile(self.remote, [*self.opening, (start, read_cached(self.remote, start, end))])
        except StorageError as error:  # during a run this is an error of the data
            raise DataError(error.message, error.hint) from None

    def prefetch(self, group: int, column: str) -> None:
        """Downloads a column of a row group to the cache in the background; errors are raised when it is read."""
        start, end = self._range(group, column)
        if end - start <= limit_bytes() // 4 and not is_cached(self.remote, start, end):
            READ_AHEAD.ask((self.remote, start, end), lambda: read_cached(self.remote, start, end, pauses=()))

    def _range(self, group: int, column: str) -> Range:
        if column not in self._ranges:
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.open()) as file:
                metadata = file.metadata
                found = [_chunk(metadata, number, column) or (0, 0) for number in range(metadata.num_row_groups)]
            self._ranges[column] = np.array(found, dtype=np.int64)
        start, end = self._ranges[column][group].tolist()
        return start, end


class RemoteFile(io.RawIOBase):
    """File object for pyarrow: reads from the given (start, bytes) ranges, else from the hub."""

    def __init__(self, remote: Remote, stretches: Iterable[tuple[int, bytes]]) -> None:
        self._remote, self._stretches, self._at = remote, list(stretches), 0
        self._size = remote.size or 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        start, self._at = self._at, max(self._at, end)
        for first, content in self._stretches:
            if first <= start and end <= first + len(content):
                return content[start - first : end - first]
        return read_range(self._remote, start, end) if end > start else b""


def open_streams(remotes: Sequence[Remote], on_progress: OnProgress | None = None) -> list[StreamedParquet]:
    """Reads footers and labels from the cache, else from the hub into the cache.

    Raises:
        RangesUnsupported: The server does not support range requests.
        StorageError: The download fails; the message gives the reason.
    """
    found: list[StreamedParquet | None] = []
    for remote in remotes:
        kept = load_index(_index_path(remote), _about(remote))
        found.append(None if kept is None else StreamedParquet(remote, _unpacked(kept)))
    missing = [remote for remote, each in zip(remotes, found, strict=True) if each is None]

    def tell(what: str) -> Callable[[int, int], None] | None:
        return None if on_progress is None else lambda done, total: on_progress(what, done, total, "request")

    footers = _in_parallel(_footer, missing, tell("reading footers"))
    stretches_of_labels = [
        (number, stretch)
        for number, (remote, footer) in enumerate(zip(missing, footers, strict=True))
        for stretch in _label_ranges(remote, footer)
    ]
    labels = _in_parallel(lambda job: read_range(missing[job[0]], *job[1]), stretches_of_labels, tell("reading labels"))
    read: list[list[tuple[int, bytes]]] = [[footer] for footer in footers]
    for (number, (start, _)), content in zip(stretches_of_labels, labels, strict=True):
        read[number].append((start, content))
    made = [StreamedParquet(remote, stretches) for remote, stretches in zip(missing, read, strict=True)]
    for each in made:
        save_index(_index_path(each.remote), _about(each.remote), _packed(each.opening), each.remote.label)
    rest = iter(made)
    return [each if each is not None else next(rest) for each in found]


def _in_parallel(
    job: Callable[[T], R], items: Sequence[T], on_done: Callable[[int, int], None] | None = None
) -> list[R]:
    """Maps `job` over the items in threads; the first error cancels the rest."""
    results: list[R] = []
    pool = ThreadPoolExecutor(_CONNECTIONS)
    try:
        for result in pool.map(job, items):
            results.append(result)
            if on_done is not None:
                on_done(len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # loaders fork, so no thread may remain
    return results


def _footer(remote: Remote) -> tuple[int, bytes]:
    """Returns (start, bytes) of the end of a file, with the whole footer."""
    size = remote.size or 0
    start = max(0, size - _TAIL)
    tail = read_range(remote, start, size)
    length = int.from_bytes(tail[-_FOOTER_END:-4], "little") + _FOOTER_END
    if tail[-4:] == b"PAR1" and _MOST_FOOTER < length <= size:
        raise DataError(
            f"'{remote.label}' claims a footer of {length:,} bytes.", "Write it again with fewer row groups."
        )
    if tail[-4:] == b"PAR1" and len(tail) < length <= size:
        start, tail = size - length, read_range(remote, size - length, start) + tail
    return start, tail


def _label_ranges(remote: Remote, footer: tuple[int, bytes]) -> list[Range]:
    """Returns the ranges of labels that were not read with the footer; merges close ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(RemoteFile(remote, [footer])) as file:
            metadata = file.metadata
            found = [_chunk(metadata, group, LABEL) for group in range(metadata.num_row_groups)]
    except (OSError, ValueError, pa.ArrowException):
        return []  # opening the file reports the error
    ranges: list[Range] = []
    inside = [each for each in found if each is not None and 0 <= each[0] <= each[1] <= (remote.size or 0)]
    for start, end in sorted(each for each in inside if each[0] < footer[0]):
        if ranges and start - ranges[-1][1] <= _GAP:
            ranges[-1] = ranges[-1][0], max(end, ranges[-1][1])
        else:
            ranges.append((start, end))
    return ranges


def _chunk(metadata: pq.FileMetaData, group: int, name: str) -> Range | None:
    """Returns the range of a column of a row group, of a list's items too; None if there is no such column."""
    row_group = metadata.row_group(group)
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        if column.path_in_schema == name or column.path_in_schema.startswith(f"{name}."):
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            return start, start + column.total_compressed_size
    return None


def _index_path(remote: Remote) -> Any:
    return index_path("stream", f"/{remote.label}")


def _about(remote: Remote) -> dict[str, Any]:
    return {"mark": remote.mark or remote.commit, "size": remote.size}


def _packed(stretches: Sequence[tuple[int, bytes]]) -> dict[str, np.ndarray]:
    return {
        "starts": np.array([start for start, _ in stretches], dtype=np.int64),
        "lengths": np.array([len(content) for _, content in stretches], dtype=np.int64),
        "content": np.frombuffer(b"".join(content for _, content in stretches), dtype=np.uint8),
    }


def _unpacked(kept: dict[str, np.ndarray]) -> list[tuple[int, bytes]]:
    ends = np.cumsum(kept["lengths"])
    starts, lengths = kept["starts"].tolist(), kept["lengths"].tolist()
    return [
        (start, kept["content"][end - length : end].tobytes())
        for start, length, end in zip(starts, lengths, ends.tolist(), strict=True)
    ]
