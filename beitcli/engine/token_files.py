"""Files of visual tokens: .jsonl grows line by line; .npz and .safetensors are written at the end, whole."""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from beitcli.engine.outputs import make_folder, write_whole
from beitcli.errors import DataError, StorageError, UsageError

Document = dict[str, Any]


class TokenFile(ABC):
    """Where documents `{"path", "grid", "tokens"}` go.

    Attributes:
        held: Paths that the file holds already (with `resume`).
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        if path.exists() and not resume:
            raise UsageError(f"'{path}' exists.", "Give another -o FILE, or add --resume to go on with it.")
        make_folder(path.parent)
        self.documents = list(self.read(path)) if resume and path.exists() else []
        self.held = {document["path"] for document in self.documents}

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Iterator[Document]:
        """The documents of a file; lines of bad images are left out."""

    @abstractmethod
    def add(self, document: Document) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Puts everything on disk."""


class JsonLines(TokenFile):
    def __init__(self, path: Path, resume: bool) -> None:
        super().__init__(path, resume)
        if path.exists():  # what is no whole line of tokens goes
            kept = "".join(json.dumps(document) + "\n" for document in self.documents)
            write_whole(path, lambda file: file.write(kept.encode()))
        try:
            self.file: TextIO = path.open("a")
        except OSError as error:
            raise StorageError(f"'{path}' cannot be written: {error.strerror}.", "Give another -o FILE.") from None

    @staticmethod
    def read(path: Path) -> Iterator[Document]:
        with path.open() as file:
            for line in file:
                if not line.endswith("\n"):
                    return  # a killed process left it unfinished
                document = parse_line(line, str(path))
                if "tokens" in document:
                    yield document

    def add(self, document: Document) -> None:
        try:
            self.file.write(json.dumps(document) + "\n")
        except OSError as error:
            raise StorageError(
                f"'{self.path}' cannot be written: {error.strerror}.", "Free space, then --resume."
            ) from None

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            raise StorageError(
                f"'{self.path}' cannot be written: {error.strerror}.", "Free space, then --resume."
            ) from None


class _Whole(TokenFile):
    def add(self, document: Document) -> None:
        if "tokens" in document:
            self.documents.append(document)

    def arrays(self) -> dict[str, np.ndarray]:
        """tokens (n, N) int32 and grid (2,) int32; every image has the same grid."""
        tokens = np.array([document["tokens"] for document in self.documents], dtype=np.int32)
        grid = self.documents[0]["grid"] if self.documents else (0, 0)
        return {"tokens": tokens.reshape(len(self.documents), -1), "grid": np.array(grid, dtype=np.int32)}

    @property
    def paths(self) -> list[str]:
        return [document["path"] for document in self.documents]


class Npz(_Whole):
    @staticmethod
    def read(path: Path) -> Iterator[Document]:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                rows, grid, paths = arrays["tokens"].tolist(), arrays["grid"].tolist(), arrays["paths"].tolist()
        except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
            raise StorageError(f"'{path}' is no file of tokens: {error}.", "Give another -o FILE.") from None
        for name, row in zip(paths, rows, strict=True):
            yield {"path": name, "grid": grid, "tokens": row}

    def close(self) -> None:
        arrays = self.arrays()
        tokens, grid, paths = arrays["tokens"], arrays["grid"], np.array(self.paths, dtype=str)
        write_whole(self.path, lambda file: np.savez_compressed(file, paths=paths, tokens=tokens, grid=grid))


class Safetensors(_Whole):
    @staticmethod
    def read(path: Path) -> Iterator[Document]:
        try:
            with safe_open(path, framework="numpy") as tensors:
                rows, grid = tensors.get_tensor("tokens").tolist(), tensors.get_tensor("grid").tolist()
                paths = json.loads(tensors.metadata()["paths"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"'{path}' is no file of tokens: {error}.", "Give another -o FILE.") from None
        for name, row in zip(paths, rows, strict=True):
            yield {"path": name, "grid": grid, "tokens": row}

    def close(self) -> None:
        data = save(self.arrays(), metadata={"paths": json.dumps(self.paths)})
        write_whole(self.path, lambda file: file.write(data))


FORMATS: dict[str, type[TokenFile]] = {".jsonl": JsonLines, ".npz": Npz, ".safetensors": Safetensors}


def open_token_file(path: Path, resume: bool) -> TokenFile:
    """The writer for the file's suffix.

    Raises:
        UsageError: Unknown suffix, or the file exists and `resume` is not asked for.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"-o '{path}' has no known suffix.", f"Use one of {', '.join(FORMATS)}.")
    return kind(path, resume)


def parse_line(line: str, where: str) -> Document:
    """One JSON line of tokens, checked.

    Raises:
        DataError: It is none.
    """
    try:
        document = json.loads(line)
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
