"""Files of visual tokens: .jsonl is appended line by line; the other formats are written atomically at the end.

A file holds tokens of one grid and one tokenizer, and is resumed only with the same. Archives identify the tokenizer by
the hash of its weights; .jsonl lines cannot, so the range of their tokens is checked.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from beitcli.data.sources.formats.parquet import require_pyarrow
from beitcli.engine.io.outputs import is_stream, make_folder, open_stream, write_output
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.runtime.storage.safe_json import dump_json, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

Document = dict[str, Any]
_ROW_GROUP = 65_536  # images


@dataclass(frozen=True)
class TokenKind:
    """Properties common to all tokens of a file.

    Attributes:
        grid: (h, w) tokens.
        vocab_size: Of the tokenizer; tokens are in 0 to `vocab_size` - 1.
        sha256: Of the tokenizer's weights.
    """

    grid: tuple[int, int]
    vocab_size: int
    sha256: str

    def require(self, path: Path, grid: tuple[int, ...], largest: int, sha256: str | None = None) -> None:
        """Raises UsageError if the tokens in `path` have another grid, vocabulary or tokenizer."""
        if tuple(grid) != self.grid:
            held, made = (" x ".join(map(str, each)) for each in (grid, self.grid))
            raise UsageError(
                f"'{path}' holds {held} tokens an image, but these settings give {made}.",
                "Give the --size that it was made with, or another -o FILE.",
            )
        if largest >= self.vocab_size:
            raise UsageError(
                f"'{path}' holds token {largest}, but this tokenizer's are 0 to {self.vocab_size - 1}.",
                "Go on with the tokenizer that made it, or give another -o FILE.",
            )
        if sha256 and sha256 != self.sha256:
            raise UsageError(
                f"'{path}' was made by another tokenizer: its weights have SHA-256 {sha256[:12]}..., "
                f"this one's {self.sha256[:12]}...",
                "Go on with the tokenizer that made it, or give another -o FILE.",
            )


class TokenFile(ABC):
    """Writer of documents `{"path", "grid", "tokens"}`.

    Attributes:
        held: Paths that the file already contains (with `resume`).
    """

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        self.path, self.kind = path, kind
        self.held: set[str] = set()
        if not is_stream(path):
            make_folder(Path(os.path.realpath(path)).parent)
        if resume and path.exists() and not is_stream(path):
            self.take_up()

    @abstractmethod
    def take_up(self) -> None:
        """Resumes the existing file: fills `held`.

        Raises:
            UsageError: Its tokens are of another kind; the file is left unchanged.
            StorageError: It is not a token file.
        """

    @abstractmethod
    def add(self, document: Document) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Writes everything to disk."""


class JsonLines(TokenFile):
    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        super().__init__(path, kind, resume)
        try:
            self.file: TextIO = self._open("a" if resume else "w")
        except OSError as error:
            raise StorageError(f"'{path}' cannot be written: {error.strerror}.", "Give another -o FILE.") from None

    def _open(self, mode: str) -> TextIO:
        if is_stream(self.path):
            return TextIOWrapper(open_stream(self.path), encoding="utf-8")
        return cast(
            "TextIO", self.path.open(mode, encoding="utf-8")
        )  # line by line: what a killed process has written is resumed

    def take_up(self) -> None:
        write_output(self.path, self._copy_whole_lines)

    def _copy_whole_lines(self, target: BinaryIO) -> None:
        """Copies complete lines of tokens; drops bad images, and the line that a killed process left incomplete."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                document = parse_line(line.decode(errors="replace"), str(self.path))
                if "tokens" in document:
                    self.kind.require(self.path, tuple(document["grid"]), max(document["tokens"]))
                    self.held.add(document["path"])
                    target.write(line)

    def add(self, document: Document) -> None:
        try:
            self.file.write(dump_json(document) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        try:
            self.file.close()
            os.stat(self.path)  # fails if the file was removed meanwhile
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"'{self.path}' cannot be written: {error.strerror}.", "Free space, then --resume.")


class _Archive(TokenFile):
    """File with `paths`, `tokens` (n, N) int32 in their order, `grid` (2,) int32, and the tokenizer's hash."""

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        self.paths: list[str] = []
        self.rows: list[np.ndarray] = []  # 4 bytes per token; a list of ints takes 8 or more
        super().__init__(path, kind, resume)

    @staticmethod
    @abstractmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        """Returns paths, arrays and tokenizer hash of a file; may raise any error if it is damaged."""

    def take_up(self) -> None:
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
        self.paths, self.rows = paths, list(tokens.astype(np.int32, copy=False))
        self.held = set(paths)

    def add(self, document: Document) -> None:
        if "tokens" in document:
            self.paths.append(document["path"])
            self.rows.append(np.array(document["tokens"], dtype=np.int32))

    def arrays(self) -> dict[str, np.ndarray]:
        rows, columns = self.kind.grid
        tokens = np.stack(self.rows) if self.rows else np.empty((0, rows * columns), dtype=np.int32)
        return {"tokens": tokens, "grid": np.array(self.kind.grid, dtype=np.int32)}


class Npz(_Archive):
    @staticmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        return arrays["paths"].tolist(), arrays, str(arrays["tokenizer"]) if "tokenizer" in arrays else None

    def close(self) -> None:
        arrays, paths, sha256 = self.arrays(), np.array(self.paths, dtype=str), np.array(self.kind.sha256)
        tokens, grid = arrays["tokens"], arrays["grid"]
        write_output(
            self.path,
            lambda file: np.savez_compressed(file, paths=paths, tokens=tokens, grid=grid, tokenizer=sha256),
        )


class Safetensors(_Archive):
    @staticmethod
    def read(path: Path) -> tuple[list[str], Mapping[str, np.ndarray], str | None]:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata()
            arrays = {name: stored.get_tensor(name) for name in ("tokens", "grid")}
        return parse_json(metadata["paths"]), arrays, metadata.get("tokenizer")

    def close(self) -> None:
        data = save(self.arrays(), metadata={"paths": dump_json(self.paths), "tokenizer": self.kind.sha256})
        write_output(self.path, lambda file: file.write(data))


class Parquet(_Archive):
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

    def close(self) -> None:
        import pyarrow.parquet as pq

        schema = self._schema()
        starts = range(0, len(self.paths), _ROW_GROUP)

        def write(file: BinaryIO) -> None:
            with pq.ParquetWriter(file, schema) as writer:
                for first in starts:
                    writer.write_table(self._table(schema, slice(first, first + _ROW_GROUP)))

        write_output(self.path, write)

    def _schema(self) -> pa.Schema:
        """Returns the schema; the column of paths holds bytes if one is not UTF-8."""
        import pyarrow as pa

        try:
            "".join(self.paths).encode()
            text = pa.string()
        except UnicodeEncodeError:
            text = pa.binary()
        about = {"tokenizer": self.kind.sha256, "grid": self.kind.grid}
        numbers = pa.list_(pa.int32())
        return pa.schema([("path", text), ("grid", numbers), ("tokens", numbers)], metadata={"beit": dump_json(about)})

    def _table(self, schema: pa.Schema, rows: slice) -> pa.Table:
        import pyarrow as pa

        paths = [os.fsencode(path) for path in self.paths[rows]]
        tokens = np.stack(self.rows[rows])
        grids = np.tile(np.array(self.kind.grid, dtype=np.int32), (len(paths), 1))
        lists = [
            pa.ListArray.from_arrays(np.arange(len(each) + 1, dtype=np.int32) * each.shape[1], each.reshape(-1))
            for each in (grids, tokens)
        ]
        return pa.table([pa.array(paths, pa.binary()).cast(schema.field("path").type), *lists], schema=schema)


FORMATS: dict[str, type[TokenFile]] = {
    ".jsonl": JsonLines,
    ".npz": Npz,
    ".safetensors": Safetensors,
    ".parquet": Parquet,
}


def open_token_file(path: Path, kind: TokenKind, resume: bool) -> TokenFile:
    """Returns the writer for the file's suffix.

    Raises:
        UsageError: Unknown suffix, or with `resume` a file that holds tokens of another kind.
        StorageError: It is not a token file, or cannot be written.
    """
    require_known_suffix(path)
    return FORMATS[path.suffix.lower()](path, kind, resume)


def require_known_suffix(path: Path) -> None:
    """Raises UsageError if the suffix is that of no format."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"-o '{path}' has no known suffix.", f"Use one of {', '.join(FORMATS)}.")


def parse_line(line: str, where: str) -> Document:
    """Parses and checks one JSON line of tokens.

    Raises:
        DataError: It is not one.
    """
    try:
        document = parse_json(line)
    except ValueError:
        document = None
    told = isinstance(document, dict) and not document.keys().isdisjoint(("tokens", "error"))
    if not told or not isinstance(document.get("path"), str):
        raise DataError(
            f"{where} holds a line that is no token document: {line[:60]!r}.", "Give the output of `beit tokenize`."
        )
    if "tokens" in document:
        grid, tokens = document.get("grid"), document["tokens"]
        lists: list[list[Any]] = [value if isinstance(value, list) else [None] for value in (tokens, grid)]
        whole = all(type(number) is int and number >= 0 for values in lists for number in values)
        if not whole or not tokens or len(lists[1]) != 2 or len(tokens) != lists[1][0] * lists[1][1]:
            raise DataError(
                f"{where}: the tokens of '{document['path']}' do not fill their grid.",
                "Give the output of `beit tokenize`.",
            )
    return document
