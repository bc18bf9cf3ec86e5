"""Reads columns of parquet files in bounded memory.

A few hundred bytes can stand for gigabytes: a dictionary of one value that every row repeats, zeros that compress
well, or a footer that claims anything. So the footer's claims are compared with the file's size, and a row group is
read in batches whose worst case is known, until it exceeds what the file's size allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from beitcli.data.sources.formats._parquet_columns import plain

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

WINDOW_BYTES = 256_000_000  # of row groups in memory, per process; a row group of so many bytes is always read
_RATIO = 200  # of unpacked to packed bytes beyond that; images hardly compress
_ROWS = 1_000_000  # always accepted; beyond that a row takes a byte of the file at least
_BATCH_BYTES = 32_000_000  # what a batch takes at most, unless a single row takes more
_BATCH_ROWS = 65_536


class TooLargeUnpacked(ValueError):
    """A column that takes far more memory than the file's size allows."""


def require_plausible(metadata: pq.FileMetaData, size: int) -> None:
    """Compares the sizes that a footer claims with the file's.

    What it says of single columns is not looked at: pyarrow ends the process where that is damaged.

    Args:
        size: Bytes of the file.

    Raises:
        ValueError: A size is negative, or so large that it cannot be true.
    """
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows < 0 or group.total_byte_size < 0:
            raise ValueError(f"its footer claims {group.num_rows:,} rows of {group.total_byte_size:,} bytes")
        rows += group.num_rows
        if group.total_byte_size > _allowed(size):
            raise ValueError(f"its footer claims that {size:,} bytes unpack to {group.total_byte_size:,}")
    if rows > max(_ROWS, size):
        raise ValueError(f"its footer claims {rows:,} rows in {size:,} bytes")


def _allowed(packed: int) -> int:
    return max(WINDOW_BYTES, _RATIO * packed)


def column_batches(file: pq.ParquetFile, group: int, name: str, size: int) -> Iterator[pa.Array]:
    """Yields a column of a row group in parts.

    Args:
        name: Dotted name. Of a struct's part, its null structs are null.
        size: Bytes of the file.

    Raises:
        TooLargeUnpacked: It unpacks to more bytes than the file's size allows.
    """
    import pyarrow as pa

    row_group = file.metadata.row_group(group)
    worst = max(1, row_group.total_byte_size)  # bytes of a row: a repeated value
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // worst))
    if _is_dictionary(file.schema_arrow, name):
        rows = max(1, row_group.num_rows)  # each part has the whole dictionary
    unpacked = 0
    for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
        part = batch.column(0)
        while isinstance(part, pa.ExtensionArray):
            part = part.storage
        if pa.types.is_struct(part.type):
            (part,) = part.flatten()
        unpacked += part.nbytes
        if unpacked > _allowed(size):
            raise TooLargeUnpacked(f"{size:,} bytes unpack to more than {_allowed(size):,}")
        yield part


def _is_dictionary(schema: pa.Schema, name: str) -> bool:
    import pyarrow as pa

    top, _, inner = name.partition(".")
    if name in schema.names:
        kind = schema.field(name).type
    else:
        kind = schema.field(top).type
        kind = kind.field(inner).type if pa.types.is_struct(kind) else kind
    return kind != plain(kind) and pa.types.is_dictionary(kind)
