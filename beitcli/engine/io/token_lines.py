"""Lines of visual tokens, .jsonl, and what every file of tokens has in common.

A file holds tokens of one grid and one tokenizer, and is resumed only with the same. Lines do not say their tokenizer:
the range of their tokens is checked, and `stored` lets the caller encode some of their images again and compare.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from beitcli.engine.io.outputs import is_stream, make_folder, open_stream, write_output
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.runtime.storage.own_files import temporary_beside
from beitcli.runtime.storage.safe_json import dump_json, parse_json

Document = dict[str, Any]
STORED = 8  # images whose tokens are compared


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
        stored: Tokens of the first images, by path, of a file that does not say its tokenizer; empty if it does.
    """

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        self.path, self.kind = path, kind
        self.held: set[str] = set()
        self.stored: dict[str, list[int]] = {}
        if not is_stream(path):
            make_folder(Path(os.path.realpath(path)).parent)

    @abstractmethod
    def add(self, document: Document) -> None: ...

    @abstractmethod
    def close(self, *, done: bool = True) -> None:
        """Closes the file; `done`: the job has ended, and what it replaces is replaced."""


class JsonLines(TokenFile):
    """One that replaces an existing file is written beside it, and else appended line by line, to be resumed."""

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        super().__init__(path, kind, resume)
        whole = Path(os.path.realpath(path))
        self._beside: Path | None = None
        if resume and path.exists() and not is_stream(path):
            write_output(path, self._copy_whole_lines)
        elif not is_stream(path) and whole.is_file() and whole.stat().st_size:
            self._beside = temporary_beside(whole)
        try:
            self.file: TextIO = self._open("a" if resume else "w")
        except OSError as error:
            raise StorageError(f"'{path}' cannot be written: {error.strerror}.", "Give another -o FILE.") from None

    def _open(self, mode: str) -> TextIO:
        if is_stream(self.path):
            return TextIOWrapper(open_stream(self.path), encoding="utf-8")
        return cast("TextIO", (self._beside or self.path).open(mode, encoding="utf-8"))

    def _copy_whole_lines(self, target: BinaryIO) -> None:
        """Copies complete lines of tokens; drops bad images, and the line that a killed process left incomplete."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                document = parse_line(line.decode("utf-8-sig", errors="replace"), str(self.path))
                if "tokens" in document:
                    self.kind.require(self.path, tuple(document["grid"]), max(document["tokens"]))
                    self.held.add(document["path"])
                    if len(self.stored) < STORED:
                        self.stored[document["path"]] = document["tokens"]
                    target.write(line)

    def add(self, document: Document) -> None:
        try:
            self.file.write(dump_json(document) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self, *, done: bool = True) -> None:
        try:
            self.file.close()
            if self._beside is not None and done:
                self._beside.replace(os.path.realpath(self.path))
            elif self._beside is None:
                os.stat(self.path)  # fails if the file was removed meanwhile
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            if self._beside is not None:
                self._beside.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"'{self.path}' cannot be written: {error.strerror}.", "Free space, then --resume.")


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
