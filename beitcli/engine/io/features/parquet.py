"""Features as .parquet: the column `features` of fixed-size lists, columns `path` and `label`.

What the features are stands in the metadata of the schema.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from beitcli.engine.io.features.stored import Blocks, Rows, StoredFeatures
from beitcli.engine.io.write_output import write_output
from beitcli.runtime.storage.safe_json import dump_json, parse_json

if TYPE_CHECKING:
    import pyarrow as pa


def write(path: Path, rows: Rows) -> None:
    """Writes a row group for each block; paths, and labels, are bytes if one is not UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers: pa.DataType = pa.from_numpy_dtype(np.dtype(rows.kind.dtype))
    for side in reversed(rows.kind.shape):
        numbers = pa.list_(numbers, side)
    columns = [("path", _text_type(rows.paths)), ("features", numbers)]
    if rows.labels is not None:
        columns.insert(1, ("label", _text_type(each for each in rows.labels if each is not None)))
    schema = pa.schema(columns, metadata={"beit": dump_json({"features": rows.kind.as_dict()})})

    def write_rows(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            first = 0
            for block in rows.blocks():
                those = slice(first, first + len(block))
                first += len(block)
                paths = pa.array([os.fsencode(each) for each in rows.paths[those]], pa.binary())
                flat: pa.Array = pa.array(block.reshape(-1))
                for side in reversed(rows.kind.shape):
                    flat = pa.FixedSizeListArray.from_arrays(flat, side)
                arrays = [paths.cast(schema.field("path").type), flat]
                if rows.labels is not None:
                    labels = [None if each is None else os.fsencode(each) for each in rows.labels[those]]
                    arrays.insert(1, pa.array(labels, pa.binary()).cast(schema.field("label").type))
                writer.write_table(pa.table(arrays, schema=schema))

    write_output(path, write_rows)


def _text_type(texts: Iterable[str]) -> pa.DataType:
    import pyarrow as pa

    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return pa.binary()
    return pa.string()


def read(path: Path) -> StoredFeatures:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, groups = file.schema_arrow, file.num_row_groups
        kind = parse_json(schema.metadata[b"beit"])["features"]
        names = [name for name in ("path", "label") if name in schema.names]
        table = file.read(names)
    paths = [os.fsdecode(each) for each in table.column("path").cast(pa.binary()).to_pylist()]
    labels: list[str | None] | None = None
    if "label" in names:
        stored = table.column("label").cast(pa.binary()).to_pylist()
        labels = [None if each is None else os.fsdecode(each) for each in stored]

    def blocks() -> Blocks:
        with pq.ParquetFile(path) as file:
            for group in range(groups):
                column = file.read_row_group(group, ["features"]).column(0).combine_chunks()
                while pa.types.is_fixed_size_list(column.type):
                    column = column.flatten()
                yield column.to_numpy(zero_copy_only=False).reshape(-1, *kind["shape"])

    return StoredFeatures(kind, paths, labels, blocks)
