"""The part files of an archive that is not finished: FILE.partial has its rows, FILE.partial.jsonl their names.

So memory holds one batch of rows, whatever their number, and a job that was killed goes on from the last row it wrote.
The first line of names says what the rows are; rows of another kind are never continued, nor touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from beitcli.engine.io.output_paths import is_stream
from beitcli.engine.io.write_output import output_error
from beitcli.errors import StorageError
from beitcli.runtime.storage.own_files import open_own
from beitcli.runtime.storage.safe_json import dump_json, parse_json

_BLOCK_BYTES = 1 << 24
Require = Callable[[Path, dict[str, Any]], None]


def part_files(path: Path) -> tuple[Path, Path]:
    """Returns the files of rows and of names of an archive that is not finished."""
    whole = path if is_stream(path) else Path(os.path.realpath(path))
    return whole.with_name(f"{whole.name}.partial"), whole.with_name(f"{whole.name}.partial.jsonl")


class PartFiles:
    """Rows of equal shape, appended with their paths and labels.

    Attributes:
        files: Of rows and of names; in a temporary folder if the archive goes into a pipe.
        paths: Of the rows.
        labels: Class names of the rows; None without.
    """

    def __init__(
        self, path: Path, kind: dict[str, Any], shape: tuple[int, ...], dtype: str, require: Require, *, resume: bool
    ) -> None:
        """
        Args:
            path: The archive.
            kind: What the rows are; the first line of names.
            shape: Of a row.
            require: Raises UsageError if rows of another kind, whose first line it gets, cannot be continued.
            resume: Go on with the rows that are there.

        Raises:
            UsageError: With `resume`, they are of another kind; they are left as they are.
            StorageError: They are damaged, or cannot be written.
        """
        self.paths: list[str] = []
        self.labels: list[str | None] = []
        self._is_of_use = False  # beside what a finished archive has
        self._kind, self._shape, self._dtype, self._require = kind, shape, np.dtype(dtype), require
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._folder = TemporaryDirectory() if is_stream(path) else None
        self.files = part_files(Path(self._folder.name, path.name) if self._folder else path)
        try:
            self._open(resume and self._folder is None)
        except OSError as error:
            raise output_error(self.files[0], error) from None

    def _open(self, resume: bool) -> None:
        kept = self._read_names() if resume and self.files[1].exists() else 0
        self._rows = os.fdopen(open_own(self.files[0], os.O_RDWR | os.O_CREAT), "r+b")
        self._rows.truncate(len(self.paths) * self._row_bytes)
        self._rows.seek(0, os.SEEK_END)
        self._names = os.fdopen(open_own(self.files[1], os.O_RDWR | os.O_CREAT), "r+b")
        self._names.truncate(kept)
        self._names.seek(kept)
        if not kept:
            self._names.write(dump_json(self._kind).encode() + b"\n")
        self.flush()

    def _read_names(self) -> int:
        """Reads the names of the rows that both files hold; returns the length of that part of the file of names."""
        with self.files[1].open("rb") as file:
            lines = [line for line in file if line.endswith(b"\n")]
        if len(lines) < 2:  # no row, so that an archive that is there is taken over
            return 0
        try:
            self._require(self.files[1], parse_json(lines[0]))  # before rows are counted by their size
            held = self.files[0].stat().st_size // self._row_bytes if self.files[0].exists() else 0
            del lines[1 + held :]  # a killed process may have written more of one file than of the other
            if not held:
                return 0
            names = [parse_json(line) for line in lines[1:]]
            self.paths = [str(each["path"]) for each in names]
            self.labels = [each.get("label") for each in names]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"'{self.files[1]}' is damaged: {error}.", f"Remove '{self.files[0]}' and it, and begin again."
            ) from None
        self._is_of_use = True
        return sum(map(len, lines))

    def add(self, row: np.ndarray, path: str, label: str | None = None) -> None:
        """Appends a row of the given shape."""
        self._write(row)
        self._name(path, label)
        self._is_of_use = True

    def take_over(self, blocks: Iterator[np.ndarray], paths: list[str], labels: list[str | None] | None = None) -> None:
        """Appends the rows (b, *shape) of a finished archive; of a failure nothing is left."""
        try:
            for block in blocks:
                self._write(block)
            for path, label in zip(paths, labels or [None] * len(paths), strict=True):
                self._name(path, label)
            self.flush()
        except BaseException:
            self.close()  # half a copy would later count as all of it, and is removed
            raise

    def _write(self, rows: np.ndarray) -> None:
        try:
            self._rows.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        except OSError as error:
            raise output_error(self.files[0], error) from None

    def _name(self, path: str, label: str | None) -> None:
        line = dump_json({"path": path} | ({} if label is None else {"label": label}))
        try:
            self._names.write(line.encode() + b"\n")
        except OSError as error:
            raise output_error(self.files[0], error) from None
        self.paths.append(path)
        self.labels.append(label)

    def flush(self) -> None:
        """Gives what was added to the operating system, so that a killed job keeps it."""
        try:
            self._rows.flush()
            self._names.flush()
        except OSError as error:
            raise output_error(self.files[0], error) from None

    def blocks(self, rows: int | None = None) -> Iterator[np.ndarray]:
        """Yields the rows in order, in blocks (b, *shape) of as many rows, or of 16 MB."""
        self._rows.seek(0)
        step = rows or max(1, _BLOCK_BYTES // self._row_bytes)
        for first in range(0, len(self.paths), step):
            content = self._rows.read(min(step, len(self.paths) - first) * self._row_bytes)
            yield np.frombuffer(content, dtype=self._dtype).reshape(-1, *self._shape)

    def rows(self) -> np.ndarray:
        """Returns the rows as one array (n, *shape), mapped and not read; of the open file, wherever it is by now."""
        shape = (len(self.paths), *self._shape)
        if not len(self.paths):
            return np.empty(shape, dtype=self._dtype)
        self._rows.flush()
        return np.memmap(self._rows, self._dtype, "r", shape=shape)

    def close(self) -> None:
        """Closes the files, and removes them if nothing was added to what the archive has."""
        for file in (self._rows, self._names):
            with suppress(OSError):
                file.close()
        if not self._is_of_use:
            self.remove()
        if self._folder is not None:
            self._folder.cleanup()

    def remove(self) -> None:
        """Removes both files: the archive is written."""
        for part in self.files:
            with suppress(OSError):
                part.unlink(missing_ok=True)
