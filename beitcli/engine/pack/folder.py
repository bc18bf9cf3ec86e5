"""The folder of a pack: unfinished shards in DIR/.partial, which a stopped pack goes on with; then all of them in DIR.

`.partial/record.jsonl` holds what the pack is of in its first line, then a line for each shard that was written and
read back, and before shards move to DIR the names of all that is a pack's there. A finished pack is shards,
`pack.json`, `SHA256SUMS` and, where images could not be read, `bad-images.jsonl`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from beitcli.data.sources.formats._packed import MANIFEST
from beitcli.engine.io.output_paths import make_folder
from beitcli.engine.io.outputs import OutputFile
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.write_output import output_error
from beitcli.engine.pack.plan import SHARD_NAME
from beitcli.engine.pack.record import BAD, DESCRIPTIONS, SUMS, Record, entries, files_of_pack, read_record
from beitcli.engine.pack.writing import Written
from beitcli.engine.process_pool import run_in_order
from beitcli.errors import UsageError
from beitcli.runtime.storage.own_files import append_line, atomic_write_text, open_own, require_own
from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.storage.safe_json import dump_json

_PARTIAL, _RECORD, _LOCK = ".partial", "record.jsonl", ".lock"
_SHARD = re.compile(rf"{SHARD_NAME.pattern}|\.{SHARD_NAME.pattern}\.[0-9]+")  # one, or one that was being written


class PackFolder:
    """DIR, locked, with the shards that are finished already.

    Attributes:
        partial: Folder of unfinished work.
        finished: Shards that are written, by name; those of an earlier command after `check`.

    Args:
        kind: What makes two commands the same: plain values, with the `format`.

    Raises:
        UsageError: DIR holds other files, a finished pack without `overwrite`, an unfinished one of another kind, or
            another process is packing into it.
        StorageError: It cannot be written.
    """

    def __init__(self, path: Path, kind: dict[str, Any], inputs: ProtectedInputs, *, overwrite: bool) -> None:
        self.path, self.partial, self._kind = path, path / _PARTIAL, kind
        self.finished: dict[str, Written] = {}
        self._own = self._require_free(inputs, overwrite)
        make_folder(self.partial)
        self._lock = self._locked()
        self._recorded = self._of_the_same_command(overwrite)

    def _require_free(self, inputs: ProtectedInputs, overwrite: bool) -> frozenset[str]:
        """Returns the names of files in DIR that are a pack's, and are replaced."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UsageError(f"-o '{self.path}' is a file, and a folder is needed.", "Give -o DIR.")
        if self.partial.is_symlink():  # what lies in it and is no finished shard is removed
            raise UsageError(f"'{self.partial}' is a link, which is not followed.", "Give another folder.")
        record = read_record(self.partial / _RECORD)
        former = files_of_pack(self.path)
        own = former if record is None else former | record.own
        visible = [name for name in entries(self.path) if name[0] != "."]
        unfinished = [f"{_PARTIAL}/{name}" for name in entries(self.partial) if name[0] != "."]
        others = [name for name in visible if name not in own] + (unfinished if record is None else [])
        if others:
            raise UsageError(
                f"-o '{self.path}' holds other files, such as '{others[0]}'.", "Give a new or an empty folder."
            )
        for name in (*visible, *unfinished):
            if kind := inputs.kind_of(self.path / name):
                raise UsageError(f"-o '{self.path}' would replace the {kind} '{self.path / name}'.", "Give another.")
        is_moving = record is not None and record.own
        if former and not overwrite and not is_moving:
            raise UsageError(
                f"-o '{self.path}' holds a finished pack.", "Add --overwrite to replace it, or give another folder."
            )
        return own

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

    def _of_the_same_command(self, overwrite: bool) -> Record | None:
        """Returns the record of an earlier command of this kind; of another one only what it has in DIR."""
        record = read_record(self.partial / _RECORD)
        if record is None or record.kind == self._kind:
            return record
        if overwrite:
            return Record(self._kind, (), record.own)
        raise UsageError(
            f"-o '{self.path}' holds an unfinished pack of other data or settings.",
            "Give its command again to go on with it, --overwrite to start over, or another folder.",
        )

    def check(self, processes: int, on_checked: Callable[[str, bool], object]) -> None:
        """Compares the shards of an earlier command with their SHA-256, and keeps those that are what was written.

        Args:
            on_checked: Receives each shard's name, and whether it is kept.

        Raises:
            StorageError: The folder cannot be written.
        """
        record = self._recorded or Record(self._kind, (), frozenset())
        try:
            self._take_back(record)
        except OSError as error:
            raise output_error(self.path, error) from None
        sums = [(str(self.partial / each.file), each.sha256) for each in record.written]
        are_whole = run_in_order(_has_sum, None, sums, min(processes, len(sums)))
        for written, is_whole in zip(record.written, are_whole, strict=True):
            if is_whole:
                self.finished[written.file] = written
            on_checked(written.file, is_whole)
        try:
            for name in entries(self.partial):
                if name not in self.finished and (_SHARD.fullmatch(name) or name == MANIFEST):
                    (self.partial / name).unlink()
            own = [Record.line_of(set(record.own))] if record.own else []
            lines = [self._kind, *own, *map(asdict, self.finished.values())]
            text = "".join(f"{dump_json(line)}\n" for line in lines)
            atomic_write_text(self.partial / _RECORD, text, sync=True)
        except OSError as error:
            raise output_error(self.partial / _RECORD, error) from None

    def _take_back(self, record: Record) -> None:
        """Moves shards back that a killed process had moved to DIR already."""
        if not record.own or not record.written:
            return
        (self.path / MANIFEST).unlink(missing_ok=True)  # it may be of these shards
        for written in record.written:
            moved, back = self.path / written.file, self.partial / written.file
            if written.file in record.own and moved.is_file() and not os.path.lexists(back):
                moved.replace(back)

    def add(self, written: Written) -> None:
        """Records a shard that is finished."""
        self._note(asdict(written))
        self.finished[written.file] = written

    def _note(self, line: dict[str, Any]) -> None:
        try:
            append_line(self.partial / _RECORD, dump_json(line))
        except OSError as error:
            raise output_error(self.partial / _RECORD, error) from None

    def describe(self, manifest: dict[str, Any]) -> None:
        """Writes `pack.json` beside the unfinished shards, which with it are DATA as those of DIR will be."""
        _write_lines(self.partial / MANIFEST, [dump_json(manifest)])

    def finish(self, shards: Sequence[str]) -> None:
        """Moves the shards to DIR, then what describes them, and removes what an earlier pack had there."""
        written = [self.finished[name] for name in shards]
        own = self._own | DESCRIPTIONS | set(shards)
        self._note(Record.line_of(set(own)))  # before anything of DIR is removed
        try:
            (self.path / MANIFEST).unlink(missing_ok=True)  # until all is there, it is no pack
            for name in own.difference(shards):
                (self.path / name).unlink(missing_ok=True)
            for name in shards:
                (self.partial / name).replace(self.path / name)
        except OSError as error:
            raise output_error(self.path, error) from None
        bad = [{"path": path, "error": reason} for each in written for _, path, reason in each.bad]
        if bad:
            _write_lines(self.path / BAD, map(dump_json, bad))
        _write_lines(self.path / SUMS, (f"{each.sha256}  {each.file}" for each in written))
        try:
            (self.partial / MANIFEST).replace(self.path / MANIFEST)
        except OSError as error:
            raise output_error(self.path / MANIFEST, error) from None
        self._lock.release()
        with suppress(OSError):  # a stranger's files are left there
            for name in (_RECORD, _LOCK):
                (self.partial / name).unlink(missing_ok=True)
            self.partial.rmdir()


def _has_sum(_: None, shard: tuple[str, str]) -> bool:
    """Whether the file at `shard[0]` is a file, not a link, and has the SHA-256 `shard[1]`."""
    path, digest = shard
    try:
        if os.path.islink(path):
            return False
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a file whole; a link in its place, which may be a stranger's, is replaced and not followed."""
    content = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
    OutputFile(path).write(lambda file: file.write(content))
