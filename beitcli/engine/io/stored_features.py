"""Reads and writes finished files of features: .npy, .safetensors, .parquet; reads .jsonl.

| file | rows | paths, labels and what the features are |
|---|---|---|
| .npy | one array (n, D) or (n, N, D) | NAME.json beside it |
| .safetensors | the tensor `features` | metadata; paths and labels of more than a header holds: uint8 tensors of JSON |
| .parquet | the column `features`, fixed-size lists | columns `path` and `label`; metadata of the schema |
| .jsonl | a line each | in the line; what the features are is not said |

Rows are copied in blocks, so that memory holds one block whatever the number of images.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from beitcli.data.sources.formats.parquet import require_pyarrow
from beitcli.engine.io.write_output import write_output
from beitcli.errors import StorageError, UsageError
from beitcli.runtime.storage.safe_json import dump_json, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_BYTES = 1 << 24
_MOST_METADATA = 90_000_000  # bytes; the safetensors library opens no header of more than 100 MB
_NAMES = ("paths", "labels")
Blocks = Iterator[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """What the features of a file are.

    Attributes:
        model: The reference that was given; not compared.
        weights: SHA-256 of the weights.
        layer: From 1.
        pool: `mean`, `cls`, `cls+mean` or `none`.
        norm: Whether each token was normed before pooling.
        size: (H, W) of the images.
        view: How images are cropped and normalized.
        dtype: float32 or float16.
        shape: Of an image's feature: (D,) or (N, D).
    """

    model: str
    weights: str
    layer: int
    pool: str
    norm: bool
    size: tuple[int, ...]
    view: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        plain: dict[str, Any] = json.loads(dump_json(asdict(self)))
        return plain

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def require(self, path: Path, stated: dict[str, Any], beside: tuple[str, ...] = ()) -> None:
        """Raises UsageError if the features in `path` are of another model, layer, pooling, size or view.

        Args:
            stated: `as_dict` of the file's kind.
            beside: Fields that may differ.
        """
        own = self.as_dict()
        for name in own:
            if name not in ("model", *beside) and stated.get(name) != own[name]:
                held, made = (_words(name, each) for each in (stated.get(name), own[name]))
                raise UsageError(
                    f"'{path}' holds features of another kind: {name} {held}, and these settings give {made}.",
                    f"Give what it was made with (model {stated.get('model')}), or another file.",
                )


def _words(name: str, value: Any) -> str:
    return f"{str(value)[:12]}..." if name == "weights" else str(value)


@dataclass(frozen=True)
class StoredFeatures:
    """A file of features, opened to read.

    Attributes:
        kind: As `FeatureKind.as_dict`; None if the file does not say it.
        paths: Of the images, a row each.
        labels: Class names; None without.
        blocks: Opens the rows: arrays (b, *shape) in order.
    """

    kind: dict[str, Any] | None
    paths: list[str]
    labels: list[str | None] | None
    blocks: Callable[[], Blocks]


@dataclass(frozen=True)
class Rows:
    """Rows that are to be written, with their paths and labels."""

    kind: FeatureKind
    paths: list[str]
    labels: list[str | None] | None
    blocks: Callable[[], Blocks]

    def about(self) -> dict[str, Any]:
        labels = {} if self.labels is None else {"labels": self.labels}
        return {"features": self.kind.as_dict(), "paths": self.paths} | labels


def sidecar(path: Path) -> Path:
    """Returns the file beside a .npy that names its rows."""
    return path.with_suffix(".json")


def write_npy(path: Path, rows: Rows) -> None:
    shape = (len(rows.paths), *rows.kind.shape)
    header = {"descr": np.dtype(rows.kind.dtype).str, "fortran_order": False, "shape": shape}

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        _write_blocks(file, rows)

    write_output(sidecar(path), lambda file: file.write(dump_json(rows.about()).encode()))
    write_output(path, write)


def write_safetensors(path: Path, rows: Rows) -> None:
    end = len(rows.paths) * rows.kind.row_bytes
    dtype = {"float32": "F32", "float16": "F16"}[rows.kind.dtype]
    shape = [len(rows.paths), *rows.kind.shape]
    tensors: dict[str, Any] = {"features": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}
    about = {name: dump_json(value) for name, value in rows.about().items()}
    apart: list[bytes] = []
    if sum(map(len, about.values())) > _MOST_METADATA:
        for name in (name for name in _NAMES if name in about):
            apart.append(about.pop(name).encode())
            first, end = end, end + len(apart[-1])
            tensors[name] = {"dtype": "U8", "shape": [end - first], "data_offsets": [first, end]}
    text = dump_json({"__metadata__": about, **tensors}).encode()
    text = text.ljust(-(-len(text) // 8) * 8)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        _write_blocks(file, rows)
        for names in apart:
            file.write(names)

    write_output(path, write)


def _write_blocks(file: BinaryIO, rows: Rows) -> None:
    for block in rows.blocks():
        file.write(np.ascontiguousarray(block, dtype=rows.kind.dtype).data)


def write_parquet(path: Path, rows: Rows) -> None:
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

    def write(file: BinaryIO) -> None:
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

    write_output(path, write)


def _text_type(texts: Iterable[str]) -> pa.DataType:
    import pyarrow as pa

    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return pa.binary()
    return pa.string()


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".npy": write_npy,
    ".safetensors": write_safetensors,
    ".parquet": write_parquet,
}


def is_feature_file(reference: str) -> bool:
    """Whether a reference is an existing file of features, and not a parquet file of images."""
    suffix = Path(reference).suffix.lower()
    if suffix not in (*WRITERS, ".jsonl") or not os.path.isfile(reference):
        return False
    if suffix != ".parquet":
        return True
    require_pyarrow(reference)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "features" in pq.read_schema(reference).names
    except (pa.ArrowException, OSError):
        return False


def read_features(path: Path) -> StoredFeatures:
    """Opens a file of features.

    Raises:
        StorageError: It is damaged, or none.
        UsageError: It is parquet, and pyarrow is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        require_pyarrow(str(path))
    try:
        stored = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}.get(
            suffix, _read_lines
        )(path)
        if not all(isinstance(each, str) for each in stored.paths):
            raise ValueError("paths that are no text")
    except Exception as error:  # readers of damaged files raise nearly any type
        raise StorageError(f"'{path}' is no file of features: {error}.", "Give one that `beit embed` wrote.") from None
    return stored


def _stored(array: np.ndarray, about: dict[str, Any]) -> StoredFeatures:
    paths, labels = about["paths"], about.get("labels")
    if len(paths) != len(array) or (labels is not None and len(labels) != len(paths)):
        raise ValueError(f"{len(array)} rows for {len(paths)} paths")
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    return StoredFeatures(
        about["features"],
        paths,
        labels,
        lambda: (np.asarray(array[first : first + step]) for first in range(0, len(array), step)),
    )


def _read_npy(path: Path) -> StoredFeatures:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        is_empty = 0 in np.lib.format.read_array_header_1_0(file)[0]  # which cannot be mapped
    array = np.load(path, mmap_mode=None if is_empty else "r", allow_pickle=False)
    return _stored(array, parse_json(sidecar(path).read_bytes()))


def _read_safetensors(path: Path) -> StoredFeatures:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(length))
        about = {name: parse_json(text) for name, text in header["__metadata__"].items()}
        for name in (name for name in _NAMES if name in header):
            first, end = header[name]["data_offsets"]
            file.seek(8 + length + first)
            about[name] = parse_json(file.read(end - first))
    tensor = header["features"]
    dtype = {"F32": np.float32, "F16": np.float16}[tensor["dtype"]]
    shape = tuple(tensor["shape"])
    if not shape[0]:
        return _stored(np.empty(shape, dtype), about)
    return _stored(np.memmap(path, dtype, "r", 8 + length + tensor["data_offsets"][0], shape), about)


def _read_parquet(path: Path) -> StoredFeatures:
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


def _read_lines(path: Path) -> StoredFeatures:
    def lines() -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for line in file:
                document = parse_json(line)
                if "features" in document:
                    yield document
                elif "error" not in document:
                    raise ValueError(f"a line that is no feature document: {line[:60]!r}")

    paths: list[str] = []
    labels: list[str | None] = []
    for document in lines():
        paths.append(document["path"])
        labels.append(document.get("label"))
    return StoredFeatures(
        None,
        paths,
        labels if any(labels) else None,
        lambda: (np.array([document["features"]], dtype=np.float32) for document in lines()),
    )
