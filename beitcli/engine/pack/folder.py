"""The folder of a pack: unfinished shards in DIR/.partial, which a stopped pack goes on with; then all of them in DIR.

`.partial/record.jsonl` holds what the pack is of in its first line, then a line for each shard that was written and
read back. A finished pack is shards, `pack.json`, `SHA256SUMS` and, where images could not be read, `bad-images.jsonl`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from beitcli.data.sources.formats._packed import MANIFEST
from beitcli.engine.io.outputs import make_folder, output_error, write_output
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.pack.writing import Written
from beitcli.engine.process_pool import run_in_order
from beitcli.errors import UsageError
from beitcli.runtime.storage.own_files import append_line, atomic_write_text, open_own, require_own
from beitcli.runtime.storage.regular_files import open_regular, read_regular
from beitcli.runtime.storage.safe_json import dump_json, parse_json

_PARTIAL, _RECORD, _LOCK = ".partial", "record.jsonl", ".lock"
_SHARD = re.compile(r"[^.].*\.tar|\..+\.tar\.[0-9]+")  # one, or one that was being written
_SUMS, _BAD = "SHA256SUMS", "bad-images.jsonl"


class PackFolder:
    """DIR, locked, with the shards that are finished already.

    Attributes:
        partial: Folder of unfinished work.
        finished: Shards that are written, by name; those of an earlier command once `check` has looked at them.

    Args:
        kind: What makes two commands the same: plain values.

    Raises:
        UsageError: DIR holds other files, a finished pack without `overwrite`, an unfinished one of another kind, or
            another process is packing into it.
        StorageError: It cannot be written.
    """

    def __init__(self, path: Path, kind: dict[str, Any], inputs: ProtectedInputs, *, overwrite: bool) -> None:
        self.path, self.partial, self._kind = path, path / _PARTIAL, kind
        self.finished: dict[str, Written] = {}
        self._former = self._require_free(inputs, overwrite)
        make_folder(self.partial)
        self._lock = self._locked()
        self._recorded = self._of_the_same_command(overwrite)

    def _require_free(self, inputs: ProtectedInputs, overwrite: bool) -> set[str]:
        """Returns the names of an earlier pack's files, which are replaced."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UsageError(f"-o '{self.path}' is a file, and a folder is needed.", "Give -o DIR.")
        if self.partial.is_symlink():  # what lies in it and is no finished shard is removed
            raise UsageError(f"'{self.partial}' is a link, which is not followed.", "Give another folder.")
        there = {name for name in _entries(self.path) if name[0] != "."}
        former = _files_of(self.path)
        unfinished = {each.file for each in _recorded(_lines(self.partial / _RECORD)[1:])}
        others = sorted(there - former - unfinished - {_SUMS, _BAD, MANIFEST})
        if others:
            raise UsageError(
                f"-o '{self.path}' holds other files, such as '{others[0]}'.", "Give a new or an empty folder."
            )
        for name in sorted(there):
            if kind := inputs.kind_of(self.path / name):
                raise UsageError(f"-o '{self.path}' would replace the {kind} '{self.path / name}'.", "Give another.")
        if former and not overwrite:
            raise UsageError(
                f"-o '{self.path}' holds a finished pack.", "Add --overwrite to replace it, or give another folder."
            )
        return former | (unfinished & there)

    def _locked(self) -> FileLock:
        file = self.partial / _LOCK
        try:
            require_own(file)
            os.close(open_own(file, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise output_error(file, error) from None
        lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"Another process is packing into '{self.path}'.", "Wait for it, stop it, or give another folder."
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        return lock

    def _of_the_same_command(self, overwrite: bool) -> list[Written]:
        """Returns the shards that an earlier command of this kind has written."""
        first, *lines = _lines(self.partial / _RECORD) or [None]
        if first in (None, self._kind):
            return list(_recorded(lines))
        if overwrite:
            return []
        raise UsageError(
            f"-o '{self.path}' holds an unfinished pack of other data or settings.",
            "Give its command again to go on with it, --overwrite to begin anew, or another folder.",
        )

    def check(self, processes: int) -> Iterator[tuple[str, bool]]:
        """Yields each shard of an earlier command, and whether it is what was written; then begins the record anew."""
        places = [(str(self._place(each.file)), each.sha256) for each in self._recorded]
        whole = run_in_order(_has_sum, None, places, min(processes, len(places)))
        for written, is_whole in zip(self._recorded, whole, strict=True):
            if is_whole:
                self.finished[written.file] = written
            yield written.file, is_whole
        record = self.partial / _RECORD
        try:
            for name in _entries(self.partial):
                if name not in self.finished and _SHARD.fullmatch(name):
                    (self.partial / name).unlink()
            lines = [self._kind, *map(asdict, self.finished.values())]
            atomic_write_text(record, "".join(f"{dump_json(line)}\n" for line in lines))
        except OSError as error:
            raise output_error(record, error) from None

    def _place(self, name: str) -> Path:
        """Returns where a shard is: a killed process may have moved some of them to DIR."""
        return next((path for path in (self.partial / name, self.path / name) if path.is_file()), self.partial / name)

    def add(self, written: Written) -> None:
        """Records a shard that is finished."""
        try:
            append_line(self.partial / _RECORD, dump_json(asdict(written)))
        except OSError as error:
            raise output_error(self.partial / _RECORD, error) from None
        self.finished[written.file] = written

    def finish(self, manifest: dict[str, Any], shards: Sequence[str]) -> None:
        """Moves the shards to DIR, writes what describes them, and removes what an earlier pack had beside."""
        written = [self.finished[name] for name in shards]
        try:
            (self.path / MANIFEST).unlink(missing_ok=True)  # until all is there, it is no pack
            for name in self._former - {MANIFEST, *shards}:
                (self.path / name).unlink(missing_ok=True)
            for name in shards:
                place = self._place(name)
                if place.parent != self.path:
                    place.replace(self.path / name)
        except OSError as error:
            raise output_error(self.path, error) from None
        bad = [{"path": path, "error": reason} for each in written for path, reason in each.bad]
        if bad:
            _write(self.path / _BAD, map(dump_json, bad))
        _write(self.path / _SUMS, (f"{each.sha256}  {each.file}" for each in written))
        _write(self.path / MANIFEST, [dump_json(manifest)])
        self._lock.release()
        with suppress(OSError):  # a stranger's files are left there
            for name in (_RECORD, _LOCK):
                (self.partial / name).unlink(missing_ok=True)
            self.partial.rmdir()


def _has_sum(_: None, place: tuple[str, str]) -> bool:
    """Whether the file at `place[0]` has the SHA-256 `place[1]`."""
    try:
        with open_regular(place[0]) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == place[1]
    except OSError:
        return False


def _write(path: Path, lines: Iterable[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    write_output(path, lambda file: file.write(content))


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _lines(record: Path) -> list[Any]:
    """Returns the lines of a record; a last one that a killed process left in half is no line."""
    try:
        lines = read_regular(record).decode(errors="surrogateescape").splitlines(keepends=True)
        return [parse_json(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError):
        return []


def _recorded(lines: Iterable[Any]) -> Iterator[Written]:
    """Yields the shards of a record."""
    for line in lines:
        with suppress(TypeError):
            written = Written(**line)
            if _is_plain(written.file):
                yield written


def _is_plain(name: Any) -> bool:
    """Whether it is the name of a file, which leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _files_of(path: Path) -> set[str]:
    """Returns the names of a finished pack's files; empty without one."""
    try:
        manifest = parse_json(read_regular(path / MANIFEST))
        shards = {shard["file"] for split in manifest["splits"].values() for shard in split["shards"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in shards if _is_plain(name)} | {MANIFEST, _SUMS, _BAD}
