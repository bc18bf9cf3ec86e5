"""Format of parquet files with an image column, as the `datasets` library writes them.

An image is struct<bytes, path>, binary, or the path of a file (`_parquet_columns.py`). Its class is the column `label`
(`_parquet_labels.py`). A row group is the smallest unit that can be read, so training shuffles within a window of
several row groups (`Blocks`), and each process keeps that many in memory.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from beitcli.data.sources.base import Blocks, OnProgress, Source
from beitcli.data.sources.files import read_error, require_whole_labels
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._parquet_columns import HINT, encoded_file, linked_file
from beitcli.data.sources.formats._parquet_contents import (
    FileContents,
    damage_named,
    file_bytes,
    first_line,
    joined_labels,
)
from beitcli.data.sources.formats._parquet_reading import (
    WINDOW_BYTES,
    TooLargeUnpacked,
    column_batches,
)
from beitcli.data.sources.formats._parquet_vectors import joined_vectors, number_columns, read_numbers
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.extras import install_line

if TYPE_CHECKING:
    import pyarrow as pa

    from beitcli.data.sources.remote.parquet_stream import StreamedParquet

_MOST_TOGETHER = 64


class ParquetSource(Source):
    """The rows of several files, in order. Memory: 4 bytes per image."""

    def __init__(
        self,
        files: Sequence[str | StreamedParquet],
        *,
        name: str = "",
        names: Sequence[str] | None = None,
        versions: Sequence[str] = (),
        labelled: bool = False,
        is_local: bool = True,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            files: One or more paths and files on the hub.
            name: The DATA reference; the first file if empty.
            names: Names of the files for the user; the paths if None.
            versions: Hashes of the files, if known; part of the fingerprint.
            labelled: Whether labels are required: rows without one are then an error.
            is_local: Whether rows may name files of this machine.
            on_progress: Receives the number of opened files.

        Raises:
            DataError: A file is missing, damaged or without images, or some rows have no label.
            UsageError: pyarrow is not installed.
        """
        self._files, self._file_names = list(files), list(names or map(str, files))
        self.name, self._versions = name or self._file_names[0], list(versions)
        require_pyarrow(self.name)
        self._is_local = is_local
        self._held: OrderedDict[int, _Group] = OrderedDict()
        self._refused: dict[int, str] = {}  # row groups that are too large, and why
        contents = []
        for number, file in enumerate(self._files):
            contents.append(FileContents(file, self._file_names[number]))
            if on_progress is not None:
                on_progress("opening parquet files", number + 1, len(self._files), "file")
        self._columns = [content.image for content in contents]
        groups = [len(content.rows) for content in contents]
        self._file_of = np.repeat(np.arange(len(groups)), groups)
        self._group_in_file = np.concatenate([np.arange(count) for count in groups])
        self._first_in_file = np.concatenate([np.cumsum(content.rows) - content.rows for content in contents])
        rows = np.concatenate([content.rows for content in contents])
        self._starts = np.concatenate([[0], np.cumsum(rows)])
        if not len(self):
            raise DataError(f"'{self.name}' has no rows.", hint=HINT)
        largest = max(int(content.sizes.max(initial=1)) for content in contents)
        together = int(np.clip(WINDOW_BYTES // max(1, largest), 2, _MOST_TOGETHER))
        are_remote = not all(isinstance(file, str) for file in self._files)
        self._blocks = Blocks(rows[rows > 0], together, are_remote)
        self.classes, self._labels = joined_labels(contents)
        self._vectors = np.zeros((0, 0), dtype=np.float32)
        self._prints_labels = labelled or all(content.labels.was_always_read for content in contents)
        if labelled and self.classes is None:
            for content in contents:
                content.labels.require_classes(int(content.rows.sum()))
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Blocks:
        return self._blocks

    def path(self, index: int) -> str:
        """Returns the file and the row number, from 0; the `path` values of rows need not be unique."""
        group, row = self._locate(index)
        return f"{self._file_names[self._file_of[group]]}/{self._first_in_file[group] + row}"

    def fingerprint(self) -> str:
        """Returns the SHA-256 of rows, row groups (which determine the training order) and file versions."""
        groups = ",".join(map(str, self._blocks.lengths))
        printed = copy.copy(self)
        if not self._prints_labels:  # runs on this data have a fingerprint without labels
            printed.classes = None
        contents = " ".join([Source.fingerprint(printed), groups, *self._versions, *(self.label_names or ())])
        return hashlib.sha256(contents.encode() + self._vectors.tobytes()).hexdigest()

    def prefetch(self, indices: np.ndarray) -> None:
        if not self._blocks.are_remote:
            return
        for group in np.unique(np.searchsorted(self._starts, indices, side="right") - 1).tolist():
            number = int(self._file_of[group])
            file = self._files[number]
            if not isinstance(file, str) and group not in self._held:
                file.prefetch(int(self._group_in_file[group]), self._columns[number].encoded)

    def read(self, index: int) -> bytes:
        group, row = self._locate(index)
        held = self._group(group)
        image = None if held.images is None else encoded_file(held.images[row])
        if image is not None:
            return image
        path = None if held.paths is None else held.paths[row].as_py()
        if not path:
            raise BadImage("no image in its row")
        folder = os.path.dirname(self._file_names[self._file_of[group]]) if self._is_local else None
        return linked_file(os.fsdecode(path), folder)

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def read_vectors(self) -> None:
        """Reads the columns of numbers, as `label_names`.

        Raises:
            DataError: The files have other columns, or a value is no number.
        """
        import pyarrow.parquet as pq

        parts = []
        for stored, path in zip(self._files, self._file_names, strict=True):
            opened = stored if isinstance(stored, str) else stored.open()
            with damage_named(path), pq.ParquetFile(opened) as file:
                names = number_columns(file.schema_arrow)
                parts.append((path, names, read_numbers(path, file, names, file_bytes(stored))))
        self.label_names, self._vectors = joined_vectors(parts)

    def label_vector(self, index: int) -> np.ndarray | None:
        return self._vectors[index] if self.label_names else None

    def label_vectors(self) -> np.ndarray:
        return self._vectors

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, int(index - self._starts[group])

    def _group(self, group: int) -> _Group:
        """Returns the images of a row group; recently used groups stay in memory. Raises BadImage."""
        held = self._held.get(group)
        if held is not None:
            self._held.move_to_end(group)
            return held
        if group in self._refused:
            raise BadImage(self._refused[group])
        held = self._read_group(group)
        while len(self._held) >= self._blocks.together or (
            len(self._held) > 1 and held.size + sum(each.size for each in self._held.values()) > WINDOW_BYTES
        ):
            self._held.popitem(last=False)
        self._held[group] = held
        return held

    def _read_group(self, group: int) -> _Group:
        column = self._columns[int(self._file_of[group])]
        images = self._read_column(group, column.encoded) if column.encoded else None
        needs_paths = column.path and (images is None or images.null_count)
        paths = self._read_column(group, column.path, as_bytes=True) if needs_paths else None
        return _Group(images, paths, sum(each.nbytes for each in (images, paths) if each is not None))

    def _read_column(self, group: int, name: str, as_bytes: bool = False) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, inner = int(self._file_of[group]), int(self._group_in_file[group])
        stored = self._files[number]
        opened = stored if isinstance(stored, str) else stored.open_group(inner, name)
        try:
            size = file_bytes(stored)
            # No threads and no pre-buffering: workers are forked, and arrow's threads do not survive a fork.
            with pq.ParquetFile(opened, pre_buffer=False) as file:
                parts = list(column_batches(file, inner, name, size))
            column = pa.chunked_array([_bytes_of(part) for part in parts] if as_bytes else parts)
        except TooLargeUnpacked as error:
            self._refused[group] = f"its row group is too large: {error}; write smaller row groups"
            raise BadImage(self._refused[group]) from None
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:
            raise read_error(error)(f"its row group cannot be read: {first_line(error)}") from None
        if len(column) != self._starts[group + 1] - self._starts[group]:
            raise BadImage("its file has changed")
        return column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}


@dataclass(frozen=True)
class _Group:
    """A row group in memory.

    Attributes:
        images: Encoded files; None if there are only paths.
        paths: Paths as bytes; None if every image is embedded.
        size: Bytes in memory.
    """

    images: pa.ChunkedArray | None
    paths: pa.ChunkedArray | None
    size: int


def require_pyarrow(reference: str) -> None:
    """Raises UsageError if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            f"'{reference}': parquet needs the library pyarrow.", f"Install it: {install_line('hub')}"
        ) from None


def _bytes_of(strings: pa.Array) -> pa.Array:
    """Converts strings, which need not be UTF-8, to bytes."""
    import pyarrow as pa

    if isinstance(strings, pa.DictionaryArray):
        return pa.DictionaryArray.from_arrays(strings.indices, strings.dictionary.cast(pa.large_binary()))
    return strings.cast(pa.large_binary())


def open_parquet(files: list[str], request: Request) -> ParquetSource:
    """Opens local files."""
    source = ParquetSource(files, name=request.name, labelled=request.labelled, on_progress=request.on_progress)
    if request.vectors:
        source.read_vectors()
    return source


FORMAT = Format(
    looks=".parquet files",
    labels="a column label of parquet",
    recognizes=lambda path: path.lower().endswith(".parquet"),
    open=lambda paths, request: [open_parquet(paths, request)],
    rank=30,
)
