"""Reads columns of parquet files in bounded memory.

A few hundred bytes can stand for gigabytes: a dictionary of one value that every row repeats, zeros that compress
well, or a footer that claims anything. So the footer's claims are compared with the file's size, and a row group is
read in batches whose worst case is known, until it exceeds what its size in the file allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from beitcli.data.sources.formats._parquet_columns import plain

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

WINDOW_BYTES = 256_000_000  # of row groups in memory, per process; a row group of so many bytes is always read
_RATIO = 200  # of unpacked to packed bytes beyond that; images hardly compress
_ROWS = 1_000_000  # always accepted; beyond that a row takes a byte of the file at least
_BATCH_BYTES = 32_000_000  # what a batch takes at most, unless a single row takes more
_BATCH_ROWS = 65_536
_WIDEST = 8  # bytes of a number


class TooLargeUnpacked(ValueError):
    """A column that takes far more memory than its size in the file."""


def require_plausible(metadata: pq.FileMetaData, columns: Sequence[str], size: int) -> None:
    """Compares the sizes that a footer claims with the file's.

    Args:
        columns: Dotted names of the columns that will be read.
        size: Bytes of the file.

    Raises:
        ValueError: A size is negative or beyond the file, or so large that it cannot be true.
    """
    rows = 0
    places = [number for name in columns for number in _places(metadata, name)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows < 0:
            raise ValueError(f"its footer claims {group.num_rows:,} rows in row group {number}")
        rows += group.num_rows
        for place in places:
            _require_chunk(group.column(place), number, size)
    if rows > max(_ROWS, size):
        raise ValueError(f"its footer claims {rows:,} rows in {size:,} bytes")


def _require_chunk(chunk: Any, number: int, size: int) -> None:
    where = f"column {chunk.path_in_schema} of row group {number}"
    start, packed, unpacked = chunk.data_page_offset, chunk.total_compressed_size, chunk.total_uncompressed_size
    if min(start, packed, unpacked, chunk.num_values) < 0 or start + packed > size + _dictionary(chunk):
        raise ValueError(f"its footer places {where} at {start:,} with {packed:,} bytes, the file has {size:,}")
    unpacked = max(unpacked, chunk.num_values * _WIDEST if ".list." in chunk.path_in_schema else 0)
    if unpacked > _allowed(packed):
        raise ValueError(f"its footer claims that {packed:,} bytes unpack to {unpacked:,} in {where}")


def _dictionary(chunk: Any) -> int:
    """Returns the bytes of the dictionary page, which lies before the data and counts with them."""
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return max(0, chunk.data_page_offset - start) if start else 0


def _allowed(packed: int) -> int:
    return max(WINDOW_BYTES, _RATIO * packed)


def _places(metadata: pq.FileMetaData, name: str) -> list[int]:
    """Returns the numbers of the leaves of a column by its dotted name."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    return [number for number, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def column_batches(file: pq.ParquetFile, group: int, name: str) -> Iterator[pa.Array]:
    """Yields a column of a row group in parts.

    Args:
        name: Dotted name. Of a struct's part, its null structs are null.

    Raises:
        TooLargeUnpacked: It unpacks to more bytes than its size in the file allows.
    """
    import pyarrow as pa

    metadata = file.metadata
    chunks = [metadata.row_group(group).column(place) for place in _places(metadata, name)]
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    worst = max(1, sum(chunk.total_uncompressed_size for chunk in chunks))  # bytes of a row: a repeated value
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // worst))
    if _is_dictionary(file.schema_arrow, name):
        rows = max(1, metadata.row_group(group).num_rows)  # each part has the whole dictionary
    unpacked = 0
    for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
        part = batch.column(0)
        while isinstance(part, pa.ExtensionArray):
            part = part.storage
        if pa.types.is_struct(part.type):
            (part,) = part.flatten()
        unpacked += part.nbytes
        if unpacked > _allowed(packed):
            raise TooLargeUnpacked(f"{packed:,} bytes of it unpack to more than {_allowed(packed):,}")
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
