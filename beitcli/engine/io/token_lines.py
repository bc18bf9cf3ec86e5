"""Lines of visual tokens, .jsonl, and what every file of tokens has in common.

A file holds tokens of one grid and one tokenizer, and is resumed only with the same. Lines do not say their tokenizer:
the range of their tokens is checked, and `stored` lets the caller encode some of their images again and compare.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli.engine.io.appended_lines import AppendedLines
from beitcli.engine.io.output_paths import is_stream, make_folder
from beitcli.errors import DataError, UsageError
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
    """.jsonl, appended line by line. Unreadable images have a line too, and are read again by a resumed job."""

    def __init__(self, path: Path, kind: TokenKind, resume: bool) -> None:
        super().__init__(path, kind, resume)
        self._lines = AppendedLines(path, self._keeps if resume else None)

    def _keeps(self, line: bytes) -> bool:
        document = parse_line(line.decode("utf-8-sig", errors="replace"), str(self.path))
        if "tokens" not in document:
            return False
        self.kind.require(self.path, tuple(document["grid"]), max(document["tokens"]))
        self.held.add(document["path"])
        if len(self.stored) < STORED:
            self.stored[document["path"]] = document["tokens"]
        return True

    def add(self, document: Document) -> None:
        self._lines.write(dump_json(document))

    def close(self, *, done: bool = True) -> None:
        self._lines.close(done=done)


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
