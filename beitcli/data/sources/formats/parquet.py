"""Format of parquet files with an image column, as the `datasets` library writes them.

An image is struct<bytes, path> or binary. Its class is the column `label`: strings, or integers with class names in the
file's `huggingface` metadata. A row group is the smallest unit that can be read, so training shuffles within a window
of several row groups (`Blocks`), and each process keeps that many in memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from beitcli.data.sources.base import Blocks, OnProgress, Source
from beitcli.data.sources.files import Labeller, number_classes, require_whole_labels
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.remote.parquet_stream import LABEL, StreamedParquet
from beitcli.errors import BadImage, DataError, UsageError
from beitcli.runtime.storage.safe_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_WINDOW_BYTES = 256_000_000  # of row groups in memory, per process
_MOST_TOGETHER = 64
_HINT = "It needs a column of images: struct<bytes, path>, as the datasets library writes them, or binary."


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
        on_progress: OnProgress | None = None,
    ) -> None:
        """
        Args:
            files: One or more paths and files on the hub.
            name: The DATA reference; the first file if empty.
            names: Names of the files for the user; the paths if None.
            versions: Hashes of the files, if known; part of the fingerprint.
            labelled: Whether labels are required: rows without one are then an error.
            on_progress: Receives the number of opened files.

        Raises:
            DataError: A file is missing, damaged or without images, or some rows have no label.
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
        """Returns the file and the row number, from 0; the `path` values of rows need not be unique."""
        group, row = self._locate(index)
        return f"{self._file_names[self._file_of[group]]}/{self._first_in_file[group] + row}"

    def fingerprint(self) -> str:
        """Returns the SHA-256 of rows, row groups (which determine the training order) and file versions."""
        groups = ",".join(map(str, self._blocks.lengths))
        known = " ".join([super().fingerprint(), groups, *self._versions])
        return hashlib.sha256(known.encode()).hexdigest()

    def prefetch(self, indices: np.ndarray) -> None:
        if not self._blocks.are_remote:
            return
        for group in np.unique(np.searchsorted(self._starts, indices, side="right") - 1).tolist():
            number = int(self._file_of[group])
            file = self._files[number]
            if isinstance(file, StreamedParquet) and group not in self._held:
                file.prefetch(int(self._group_in_file[group]), self._columns[number])

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
        """Returns the images of a row group; recently used groups stay in memory. Raises BadImage."""
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
        opened = stored.open_group(inner, column_name) if isinstance(stored, StreamedParquet) else stored
        try:
            # No threads and no pre-buffering: workers are forked, and arrow's threads do not survive a fork.
            with pq.ParquetFile(opened, pre_buffer=False) as file:
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
    """Contents of one file, from its footer and its labels.

    Attributes:
        image: Dotted name of the column with the image bytes.
        rows: (groups,) int64, rows per row group.
        sizes: (groups,) int64, uncompressed bytes per row group.
        class_names: Class names; in label order if `is_ordered`.
        codes: (n,) int32 indices into `class_names`, -1 for rows without a label.
        is_ordered: Whether the file declares the names of its integer labels, whether or not each occurs.
    """

    def __init__(self, stored: str | StreamedParquet, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        opened = stored.open() if isinstance(stored, StreamedParquet) else stored
        try:
            with pq.ParquetFile(opened) as file:
                schema, metadata = file.schema_arrow, file.metadata
                groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
                self.rows = np.array([group.num_rows for group in groups], dtype=np.int64)
                self.sizes = np.array([group.total_byte_size for group in groups], dtype=np.int64)
                self.image = _image_column(path, schema)
                has_labels = LABEL in schema.names and _is_label(schema.field(LABEL).type)
                labels = file.read(columns=[LABEL], use_threads=False).column(0) if has_labels else None
        except (OSError, ValueError, LookupError, pa.ArrowException) as error:  # also column names not in UTF-8
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
    """Returns classes and labels of all files; declared names keep their order, to match the classes of a model."""
    first = contents[0].class_names
    if all(content.is_ordered and content.class_names == first for content in contents):
        labels = np.concatenate([content.codes for content in contents])
        return (tuple(first) if labels.min() >= 0 else None), labels
    starts = np.cumsum([0, *(len(content.class_names) for content in contents)])
    codes = [np.where(each.codes < 0, -1, each.codes + start) for each, start in zip(contents, starts, strict=False)]
    return number_classes([name for content in contents for name in content.class_names], np.concatenate(codes))


def require_pyarrow(reference: str) -> None:
    """Raises UsageError if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError(
            f"'{reference}': parquet needs the library pyarrow.", "Install it: pip install 'beit-cli[hub]'"
        ) from None


def _image_column(path: str, schema: pa.Schema) -> str:
    """Returns the dotted name of the column `image` if it holds images, else of the only column that can."""
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
    """Returns the dotted name of the bytes in a column; None if it has none."""
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
    """Returns the class names of a ClassLabel column `label`; None if the metadata has no valid, unique names."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    is_usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_usable and len(set(names)) == len(names) else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def open_parquet(files: list[str], request: Request) -> ParquetSource:
    """Opens local files."""
    return ParquetSource(files, name=request.name, labelled=request.labelled, on_progress=request.on_progress)


FORMAT = Format(
    looks=".parquet files",
    labels="a column label of parquet",
    recognizes=lambda path: path.lower().endswith(".parquet"),
    open=lambda paths, request: [open_parquet(paths, request)],
    rank=30,
)
