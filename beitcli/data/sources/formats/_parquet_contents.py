"""What is read of a parquet file of images when it is opened: its footer and its labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from beitcli.data.sources.files import number_classes
from beitcli.data.sources.formats._parquet_columns import image_column
from beitcli.data.sources.formats._parquet_labels import LABEL, LabelColumn
from beitcli.data.sources.formats._parquet_reading import column_batches, require_plausible
from beitcli.errors import DataError
from beitcli.runtime.storage.regular_files import require_regular

if TYPE_CHECKING:
    from beitcli.data.sources.remote.parquet_stream import StreamedParquet


class FileContents:
    """Contents of one file, from its footer and its labels.

    Attributes:
        image: The column of images.
        rows: (groups,) int64, rows per row group.
        sizes: (groups,) int64, uncompressed bytes per row group.
        labels: The column of labels.
        codes: (n,) int32 indices into the names of `labels`, -1 for rows without a label.
    """

    def __init__(self, stored: str | StreamedParquet, path: str) -> None:
        import pyarrow.parquet as pq

        with damage_named(path):
            size = file_bytes(stored)
            with pq.ParquetFile(stored if isinstance(stored, str) else stored.open()) as file:
                schema, metadata = file.schema_arrow, file.metadata
                self.image, self.labels = image_column(path, schema), LabelColumn(path, schema)
                require_plausible(metadata, size)
                groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
                self.rows = np.array([group.num_rows for group in groups], dtype=np.int64)
                self.sizes = np.array([group.total_byte_size for group in groups], dtype=np.int64)
                for number in range(len(groups) if self.labels.is_read else 0):
                    for values in column_batches(file, number, LABEL, size):
                        self.labels.add(values)
        self.codes = self.labels.codes(int(self.rows.sum()))
        if len(self.codes) != self.rows.sum():
            raise DataError(f"'{path}' has {len(self.codes):,} labels of {self.rows.sum():,} rows.", "Write it again.")


def joined_labels(contents: Sequence[FileContents]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Returns classes and labels of all files; declared names keep their order, to match the classes of a model."""
    first = contents[0].labels.names
    if all(content.labels.is_ordered and content.labels.names == first for content in contents):
        labels = np.concatenate([content.codes for content in contents])
        return (tuple(first) if labels.min() >= 0 else None), labels
    starts = np.cumsum([0, *(len(content.labels.names) for content in contents)])
    codes = [np.where(each.codes < 0, -1, each.codes + start) for each, start in zip(contents, starts, strict=False)]
    return number_classes([name for content in contents for name in content.labels.names], np.concatenate(codes))


@contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Context in which what pyarrow raises for a damaged file becomes a DataError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:  # also column names not in UTF-8
        raise DataError(
            f"'{path}' cannot be read as parquet: {first_line(error)}.", hint="Download or write it again."
        ) from None


def file_bytes(stored: str | StreamedParquet) -> int:
    """Returns the bytes of a file."""
    if not isinstance(stored, str):
        return stored.remote.size or 0
    require_regular(stored)
    return os.path.getsize(stored)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
