"""What a pack finds in DIR: `pack.json` of a finished one, and `.partial/record.jsonl` of one that was stopped.

Anybody may have put them there. They count only if they name this format, and then only names of shards are taken from
them: what is removed or replaced follows from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli.data.sources.formats._packed import FORMAT, MANIFEST
from beitcli.engine.pack.plan import SHARD_NAME
from beitcli.engine.pack.writing import Written
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json

SUMS, BAD = "SHA256SUMS", "bad-images.jsonl"
DESCRIPTIONS = frozenset({MANIFEST, SUMS, BAD})  # what a finished pack has beside its shards
_OWN = "own"
_NUMBERS = ("images", "bytes", "source_bytes", "copied", "encoded")


@dataclass(frozen=True)
class Record:
    """What a stopped pack has noted.

    Attributes:
        kind: Of its first line: what the pack is of.
        written: Shards that were written and read back.
        own: Files of DIR that are a pack's, from when the shards began to move there; until then none.
    """

    kind: dict[str, Any]
    written: tuple[Written, ...]
    own: frozenset[str]

    @staticmethod
    def line_of(own: set[str]) -> dict[str, list[str]]:
        """Returns the line of `own`."""
        return {_OWN: sorted(own)}


def read_record(path: Path) -> Record | None:
    """Reads a record; None if there is none, or it is another program's."""
    kind, *lines = _lines(path) or [None]
    if not isinstance(kind, dict) or kind.get("format") != FORMAT:
        return None
    own: set[str] = set()
    written = []
    for line in lines:
        if isinstance(line, dict) and isinstance(line.get(_OWN), list):
            own.update(name for name in line[_OWN] if is_shard(name) or name in DESCRIPTIONS)
        elif (shard := _written(line)) is not None:
            written.append(shard)
    return Record(kind, tuple(written), frozenset(own))


def _lines(path: Path) -> list[Any]:
    """Returns the lines up to the first damaged one, as a killed process may leave the last in half."""
    try:
        content = read_regular(path).decode(errors="surrogateescape")
    except OSError:
        return []
    return list(_parsed(content.splitlines(keepends=True)))


def _parsed(lines: list[str]) -> Iterator[Any]:
    for line in lines:
        if not line.endswith("\n"):
            return
        try:
            yield parse_json(line)
        except ValueError:
            return


def _written(line: Any) -> Written | None:
    with suppress(TypeError, ValueError):
        written = Written(**line)
        numbers = all(isinstance(getattr(written, name), int) for name in _NUMBERS)
        written.bad = [(int(index), str(path), str(reason)) for index, path, reason in written.bad]
        if is_shard(written.file) and isinstance(written.sha256, str) and numbers:
            written.levels = float(written.levels)
            return written
    return None


def is_shard(name: Any) -> bool:
    """Whether it is the name of a pack's shard, which leads to no other folder."""
    return isinstance(name, str) and SHARD_NAME.fullmatch(name) is not None


def files_of_pack(folder: Path) -> frozenset[str]:
    """Returns the names of a finished pack's files; empty without one."""
    try:
        manifest = parse_json(read_regular(folder / MANIFEST))
        if manifest["format"] != FORMAT:
            return frozenset()
        shards = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()
    return frozenset(filter(is_shard, shards)) | DESCRIPTIONS


def entries(folder: Path) -> list[str]:
    """Returns the names in a folder, sorted; empty without one."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
