"""Parquet files with an image column, as the `datasets` library writes them; only what is asked for is read.

An image is struct<bytes, path> or plain binary. Its class is the column `label`: text, or integers, which have names
where the file's `huggingface` metadata says so. A row group is the least that can be read, so training goes through a
window of some groups at a time (`Blocks`), and as many are kept in memory, a process.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from beitcli.data.sources.base import Blocks, OnProgress, Source
from beitcli.data.sources.files import Labeller, number_classes, require_whole_labels
from beitcli.data.sources.remote.parquet_stream import LABEL, StreamedParquet
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.storage.safe_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_WINDOW_BYTES = 256_000_000  # of row groups held, a process
_MOST_TOGETHER = 64
_HINT = "It needs a column of images: struct<bytes, path>, as the datasets library writes them, or binary."


class ParquetSource(Source):
    """The rows of several files, in order. Costs 4 bytes an image."""

    def __init__(
        self,
        files: Sequence[str | StreamedParquet],
        *,
        name: str = "",
        names: Sequence[str] | None = None,
        versions: Sequence[str] = (),
        labelled: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            files: At least one: paths, and files on the hub.
            name: The DATA reference; the first file where it is empty.
            names: What names each file to a person; the files themselves if None.
            versions: Of the files' contents, where they are known; part of the fingerprint.
            labelled: Whether labels are needed, so that rows without one are refused.
            on_progress: Told how many files are opened.

        Raises:
            DataError: a file is missing, damaged or without images, or labels are missing for some.
            UsageError: pyarrow is not installed.
        """
        self._files, self._file_names = list(files), list(names or map(str, files))
        self.name, self._versions = name or self._file_names[0], list(versions)
        require_pyarrow(self.name)
        self._held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        contents = []
        for number, file in enumerate(self._files):
            contents.append(_Content(file, self._file_names[number]))
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
            raise DataError(f"'{self.name}' has no rows.", hint=_HINT)
        largest = max(int(content.sizes.max(initial=1)) for content in contents)
        together = int(np.clip(_WINDOW_BYTES // max(1, largest), 2, _MOST_TOGETHER))
        are_remote = any(isinstance(file, StreamedParquet) for file in self._files)
        self._blocks = Blocks(rows[rows > 0], together, are_remote)
        self.classes, self._labels = _labels(contents)
        if labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Blocks:
        return self._blocks

    def path(self, index: int) -> str:
        """The file and the number of the row in it, from 0; the paths that rows state need not differ."""
        group, row = self._locate(index)
        return f"{self._file_names[self._file_of[group]]}/{self._first_in_file[group] + row}"

    def fingerprint(self) -> str:
        """Of the rows, of their groups, which the order of training goes by, and of the files' known versions."""
        groups = ",".join(map(str, self._blocks.lengths))
        known = " ".join([super().fingerprint(), groups, *self._versions])
        return hashlib.sha256(known.encode()).hexdigest()

    def expect(self, indices: np.ndarray) -> None:
        if not self._blocks.are_remote:
            return
        for group in np.unique(np.searchsorted(self._starts, indices, side="right") - 1).tolist():
            number = int(self._file_of[group])
            file = self._files[number]
            if isinstance(file, StreamedParquet) and group not in self._held:
                file.expect(int(self._group_in_file[group]), self._columns[number])

    def read(self, index: int) -> bytes:
        group, row = self._locate(index)
        image = self._group(group)[row]
        if image.is_valid and hasattr(image, "keys"):
            image = image["bytes"]
        if not image.is_valid:
            raise BadImage("no image in its row")
        return bytes(image.as_py())

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, int(index - self._starts[group])

    def _group(self, group: int) -> pa.ChunkedArray:
        """The images of a row group, from memory where it was read lately. Raises BadImage."""
        column = self._held.get(group)
        if column is None:
            column = self._read_group(group)
            while len(self._held) >= self._blocks.together:
                self._held.popitem(last=False)
            self._held[group] = column
        else:
            self._held.move_to_end(group)
        return column

    def _read_group(self, group: int) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, inner = int(self._file_of[group]), int(self._group_in_file[group])
        column_name, stored = self._columns[number], self._files[number]
        checkpoint = stored.open_group(inner, column_name) if isinstance(stored, StreamedParquet) else stored
        try:
            # No threads and no buffering ahead: workers are forked, and arrow's threads do not live on in them.
            with pq.ParquetFile(checkpoint, pre_buffer=False) as file:
                table = file.read_row_group(inner, columns=[column_name], use_threads=False)
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:
            raise BadImage(f"its row group cannot be read: {_first_line(error)}") from None
        column = table.column(0)
        if len(column) != self._starts[group + 1] - self._starts[group]:
            raise BadImage("its file has changed")
        return column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}


class _Content:
    """What one file holds, from its footer and its labels.

    Attributes:
        image: Dotted name of the column with the images' bytes.
        rows: (groups,) int64.
        sizes: (groups,) int64, bytes of a row group once it is unpacked.
        class_names: Of `codes`; in label order where `is_ordered`.
        codes: (n,) int32, -1 where a row has no label.
        is_ordered: The file states what its integers mean, whether or not each occurs.
    """

    def __init__(self, stored: str | StreamedParquet, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        checkpoint = stored.open() if isinstance(stored, StreamedParquet) else stored
        try:
            with pq.ParquetFile(checkpoint) as file:
                schema, metadata = file.schema_arrow, file.metadata
                groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
                self.rows = np.array([group.num_rows for group in groups], dtype=np.int64)
                self.sizes = np.array([group.total_byte_size for group in groups], dtype=np.int64)
                self.image = _image_column(path, schema)
                has_labels = LABEL in schema.names and _is_label(schema.field(LABEL).type)
                labels = file.read(columns=[LABEL], use_threads=False).column(0) if has_labels else None
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:  # names of columns that are no UTF-8
            raise DataError(
                f"'{path}' cannot be read as parquet: {_first_line(error)}.", hint="Download or write it again."
            ) from None
        names = _stated_names(schema)
        self.is_ordered = False
        if labels is None:
            self.class_names, self.codes = [], np.full(int(self.rows.sum()), -1, dtype=np.int32)
        elif names is not None and pa.types.is_integer(labels.type):
            codes = labels.cast(pa.int64()).fill_null(-1).to_numpy()
            self.is_ordered, self.class_names = True, names
            self.codes = np.where((codes >= 0) & (codes < len(names)), codes, -1).astype(np.int32)
        else:
            labeller = Labeller()
            try:
                values = labels.to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"'{path}' has labels that are not UTF-8: {error}.", hint="Write them again.") from None
            for value in values:
                labeller.add(None if value is None else str(value))
            self.class_names, self.codes = labeller.codes()


def _labels(contents: Sequence[_Content]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Classes and labels of all files; stated names keep their order, so that a model's classes are met in it."""
    first = contents[0].class_names
    if all(content.is_ordered and content.class_names == first for content in contents):
        labels = np.concatenate([content.codes for content in contents])
        return (tuple(first) if labels.min() >= 0 else None), labels
    starts = np.cumsum([0, *(len(content.class_names) for content in contents)])
    codes = [np.where(each.codes < 0, -1, each.codes + start) for each, start in zip(contents, starts, strict=False)]
    return number_classes([name for content in contents for name in content.class_names], np.concatenate(codes))


def require_pyarrow(reference: str) -> None:
    """Raises UsageError where the library is missing that parquet needs."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            f"'{reference}': parquet needs the library pyarrow.", "Install it: pip install 'beit-cli[hub]'"
        ) from None


def _image_column(path: str, schema: pa.Schema) -> str:
    """`image` where it is one, else the only column that can be."""
    found = {field.name: where for field in schema if (where := _bytes_of(field)) is not None}
    if "image" in found:
        return found["image"]
    if not found:
        raise DataError(f"'{path}' has no images; its columns: {', '.join(schema.names) or 'none'}.", hint=_HINT)
    if len(found) > 1:
        raise DataError(
            f"'{path}' has several columns that may be the images: {', '.join(found)}.",
            hint="Name one of them 'image'.",
        )
    return next(iter(found.values()))


def _bytes_of(field: pa.Field) -> str | None:
    """Dotted name of the bytes in a column; None where it holds none."""
    import pyarrow as pa

    kind = field.type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        is_image = index >= 0 and _is_binary(kind.field(index).type)
        return f"{field.name}.bytes" if is_image else None
    return field.name if _is_binary(kind) else None


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _stated_names(schema: pa.Schema) -> list[str] | None:
    """The names of a ClassLabel column `label`; None where the metadata does not tell them, each another."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    is_usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_usable and len(set(names)) == len(names) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
