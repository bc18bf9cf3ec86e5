"""Archives of visual tokens: .npz, .safetensors, .parquet, collected in part files and written at the end.

They identify the tokenizer by the hash of its weights. A job that does not come to its end leaves no archive, but the
part files (`part_files.py`), from which `--resume` goes on.
"""

from __future__ import annotations

import os
import struct
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from safetensors import safe_open

from beitcli.data.sources.formats.parquet import require_pyarrow
from beitcli.engine.io.output_paths import is_stream
from beitcli.engine.io.part_files import PartFiles
from beitcli.engine.io.token_lines import STORED, Document, TokenFile, TokenKind
from beitcli.engine.io.write_output import write_output
from beitcli.errors import StorageError
from beitcli.runtime.storage.safe_json import dump_json, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP = 65_536  # images
_FLUSHED = 64  # images after which a killed job loses no more
_MOST_HEADER = 90_000_000  # bytes; the safetensors library opens none of more than 100 MB


class TokenArchive(TokenFile):
    """File with `paths`, `tokens` (n, N) int32 in their order, `grid` (2,) int32, and the tokenizer's hash."""

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        super().__init__(path, kind, resume)

        def require(file: Path, stated: dict[str, Any]) -> None:
            kind.require(file, tuple(stated["tokens"]["grid"]), -1, stated["tokens"]["tokenizer"])

        about = {"tokens": {"grid": kind.grid, "tokenizer": kind.sha256}}
        self.parts = PartFiles(path, about, (kind.grid[0] * kind.grid[1],), "int32", require, resume=resume)
        if resume and not self.parts.paths and path.exists() and not is_stream(path):
            self._take_over()
        self.held = set(self.parts.paths)

    @staticmethod
    @abstractmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        """Returns paths, arrays and tokenizer hash of a file; may raise any error if it is damaged."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Writes the archive from the part files, whole or not at all."""

    def _take_over(self) -> None:
        """Copies the rows of the finished archive.

        Raises:
            UsageError: Its tokens are of another kind; it is left unchanged.
            StorageError: It is not a token file.
        """
        try:
            paths, tokens = self._checked()
        except BaseException:
            self.parts.close()
            raise
        self.parts.take_over(iter([tokens]), paths)

    def _checked(self) -> tuple[list[str], np.ndarray]:
        try:
            paths, arrays, sha256 = self.read(self.path)
            tokens, grid = arrays["tokens"], tuple(arrays["grid"].tolist())
            if tokens.shape != (len(paths), grid[0] * grid[1]) or tokens.dtype.kind not in "iu":
                raise ValueError(f"tokens of shape {tokens.shape} for {len(paths)} paths and grid {grid}")
            if tokens.min(initial=0) < 0:
                raise ValueError(f"token {tokens.min()}")
            if not all(isinstance(each, str) for each in paths) or not isinstance(sha256, str | None):
                raise ValueError("paths or a tokenizer that are no text")
        except Exception as error:  # readers of damaged archives raise nearly any type, from zlib's to RuntimeError
            raise StorageError(f"'{self.path}' is no file of tokens: {error}.", "Give another -o FILE.") from None
        self.kind.require(self.path, grid, int(tokens.max(initial=0)), sha256)
        if not sha256:
            self.stored = dict(zip(paths[:STORED], tokens[:STORED].tolist(), strict=True))
        return paths, tokens

    def add(self, document: Document) -> None:
        if "tokens" in document:
            self.parts.add(np.array(document["tokens"], dtype=np.int32), document["path"])
            if len(self.parts.paths) % _FLUSHED == 0:
                self.parts.flush()

    def close(self, *, done: bool = True) -> None:
        try:
            self.parts.flush()
            if done:
                self.write(self.path)
                self.parts.remove()
        finally:
            self.parts.close()

    @property
    def grid(self) -> np.ndarray:
        return np.array(self.kind.grid, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """Of all tokens."""
        return len(self.parts.paths), self.kind.grid[0] * self.kind.grid[1]


class Npz(TokenArchive):
    @staticmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        return arrays["paths"].tolist(), arrays, str(arrays["tokenizer"]) if "tokenizer" in arrays else None

    def write(self, path: Path) -> None:
        paths, sha256 = np.array(self.parts.paths, dtype=str), np.array(self.kind.sha256)
        tokens = self.parts.rows()
        write_output(
            path,
            lambda file: np.savez_compressed(file, paths=paths, tokens=tokens, grid=self.grid, tokenizer=sha256),
        )


class Safetensors(TokenArchive):
    """Paths are JSON in the metadata; of more than a header may hold, in the tensor `paths`, uint8."""

    @staticmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in ("tokens", "grid")}
            paths = stored.get_tensor("paths").tobytes() if "paths" in stored.keys() else metadata["paths"]  # noqa: SIM118
        return parse_json(paths), arrays, metadata.get("tokenizer")

    def write(self, path: Path) -> None:
        paths, end = dump_json(self.parts.paths).encode(), 4 * self.shape[0] * self.shape[1]
        tensors: dict[str, Any] = {
            "tokens": {"dtype": "I32", "shape": self.shape, "data_offsets": [0, end]},
            "grid": {"dtype": "I32", "shape": [2], "data_offsets": [end, end + 8]},
        }
        metadata = {"paths": paths.decode(), "tokenizer": self.kind.sha256}
        header = dump_json({"__metadata__": metadata} | tensors).encode()
        beyond = len(header) > _MOST_HEADER
        if beyond:
            del metadata["paths"]
            tensors["paths"] = {"dtype": "U8", "shape": [len(paths)], "data_offsets": [end + 8, end + 8 + len(paths)]}
            header = dump_json({"__metadata__": metadata} | tensors).encode()
        header = header.ljust(-(-len(header) // 8) * 8)

        def write(file: BinaryIO) -> None:
            file.write(struct.pack("<Q", len(header)) + header)
            for block in self.parts.blocks():
                file.write(block.astype("<i4", copy=False).data)
            file.write(self.grid.astype("<i4").tobytes())
            if beyond:
                file.write(paths)

        write_output(path, write)


class Parquet(TokenArchive):
    """Columns `path`, `grid` and `tokens` (lists of int32), like the lines of .jsonl; needs pyarrow."""

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        require_pyarrow(f"-o {path}")
        super().__init__(path, kind, resume)

    @staticmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=["path", "grid", "tokens"], partitioning=None)
            stated = parse_json((table.schema.metadata or {}).get(b"beit", b"{}"))
            paths = [os.fsdecode(each) for each in table.column("path").cast(pa.binary()).to_pylist()]
            grid = stated.get("grid") or table.column("grid")[0].as_py()
            if any(each != grid for each in table.column("grid").to_pylist()):
                raise ValueError("it holds several grids")
            tokens = [row.values.to_numpy() for row in table.column("tokens")]
        except pa.ArrowException as error:
            raise ValueError(error) from None
        stacked = np.stack(tokens) if tokens else np.empty((0, grid[0] * grid[1]), dtype=np.int32)
        return paths, {"tokens": stacked, "grid": np.array(grid, dtype=np.int32)}, stated.get("tokenizer")

    def write(self, path: Path) -> None:
        import pyarrow.parquet as pq

        schema = self._schema()

        def write(file: BinaryIO) -> None:
            with pq.ParquetWriter(file, schema) as writer:
                for number, tokens in enumerate(self.parts.blocks(_ROW_GROUP)):
                    first = number * _ROW_GROUP
                    paths = self.parts.paths[first : first + _ROW_GROUP]
                    writer.write_table(self._table(schema, paths, tokens))

        write_output(path, write)

    def _schema(self) -> pa.Schema:
        """Returns the schema; the column of paths holds bytes if one is not UTF-8."""
        import pyarrow as pa

        try:
            "".join(self.parts.paths).encode()
            text = pa.string()
        except UnicodeEncodeError:
            text = pa.binary()
        about = {"tokenizer": self.kind.sha256, "grid": self.kind.grid}
        numbers = pa.list_(pa.int32())
        return pa.schema([("path", text), ("grid", numbers), ("tokens", numbers)], metadata={"beit": dump_json(about)})

    def _table(self, schema: pa.Schema, paths: list[str], tokens: np.ndarray) -> pa.Table:
        import pyarrow as pa

        names = pa.array([os.fsencode(path) for path in paths], pa.binary())
        grids = np.tile(self.grid, (len(paths), 1))
        lists = [
            pa.ListArray.from_arrays(np.arange(len(each) + 1, dtype=np.int32) * each.shape[1], each.reshape(-1))
            for each in (grids, tokens)
        ]
        return pa.table([names.cast(schema.field("path").type), *lists], schema=schema)
