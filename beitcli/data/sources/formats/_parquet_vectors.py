"""Columns of numbers of parquet files, one a label, for images with several labels: bool, integers, floats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from beitcli.data.sources.formats._parquet_columns import plain
from beitcli.data.sources.formats._parquet_reading import column_batches
from beitcli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROW_NUMBERS = re.compile(r"__index_level_\d+__")
_HINT = "Each label is a column of 0 and 1 (bool, integers or floats), without nulls."


def number_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Returns the names of the columns of numbers, in order, without the row numbers that pandas keeps."""
    import pyarrow as pa

    names = [name for name in dict.fromkeys(schema.names) if not _ROW_NUMBERS.fullmatch(name)]
    kinds = {name: plain(schema.field(name).type) for name in names}
    is_number = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    return tuple(name for name, kind in kinds.items() if any(test(kind) for test in is_number))


def read_numbers(path: str, file: pq.ParquetFile, names: Iterable[str], size: int) -> np.ndarray:
    """Returns (n, L) float32.

    Args:
        path: For error messages.
        size: Bytes of the file.

    Raises:
        DataError: A value is null or not finite.
        ValueError: The file holds another number of values than of rows.
    """
    import pyarrow as pa

    columns = []
    for name in names:
        parts = []
        for number in range(file.metadata.num_row_groups):
            for values in column_batches(file, number, name, size):
                while isinstance(values, pa.ExtensionArray):
                    values = values.storage
                if isinstance(values, pa.DictionaryArray):
                    values = values.dictionary_decode()
                numbers = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
                with np.errstate(over="ignore"):  # refused below
                    parts.append(numbers.to_numpy(zero_copy_only=False).astype(np.float32))  # null becomes NaN
        column = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
        if len(column) != file.metadata.num_rows:
            raise ValueError(f"{len(column):,} values of {name} in {file.metadata.num_rows:,} rows")
        if not np.isfinite(column).all():
            row = int((~np.isfinite(column)).argmax())
            raise DataError(f"Row {row} of '{path}' has no number for {name}.", _HINT)
        columns.append(column)
    return np.stack(columns, axis=1) if columns else np.zeros((file.metadata.num_rows, 0), dtype=np.float32)


def joined_vectors(parts: list[tuple[str, tuple[str, ...], np.ndarray]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names and (n, L) float32 numbers of several files: their paths, names and numbers.

    Raises:
        DataError: Their columns differ.
    """
    first = parts[0][1]
    for path, names, _ in parts:
        if set(names) != set(first):
            other = sorted(set(names) ^ set(first))[0]
            raise DataError(f"'{path}' and '{parts[0][0]}' have other columns, such as {other}.", _HINT)
    return first, np.concatenate([numbers[:, [names.index(name) for name in first]] for _, names, numbers in parts])
