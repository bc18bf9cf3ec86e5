"""The folder of a run: settings, metrics, bad images, model card; checkpoints are in `checkpoints/`.

Only one process writes to a run at a time. It holds `RUN/.lock` with `flock`, which the kernel releases when the
process ends for any reason; forked children do not hold it. Several RunFolders of one process share the lock.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import BaseFileLock, FileLock, Timeout

from beitcli.errors import StorageError, UsageError
from beitcli.escaping import shell_line
from beitcli.runtime.storage.own_files import (
    append_line,
    atomic_write_text,
    create_new,
    open_own,
    require_own,
)
from beitcli.runtime.storage.run_lock import holder, is_locked
from beitcli.runtime.storage.safe_json import dump_json

_OWN_FILES = ("config.toml", "metrics.jsonl", "bad-images.jsonl", "README.md", "arithmetic.json")
PREVIEWS = "previews"  # folder of a picture a save
_UNFINISHED = re.compile(r"\.(?:.+\.(?:toml|jsonl|md|html|json|png)\.|writable-)[0-9]+")


# Locks of this process by (device, inode) of the file; each lives as long as a RunFolder of its folder.
_locks: WeakValueDictionary[tuple[int, int], BaseFileLock] = WeakValueDictionary()


def in_use(path: Path) -> UsageError:
    """Returns the error of a run folder whose lock another process holds."""
    return UsageError(
        f"Run folder '{path}' is in use by {holder(path / '.lock')}.",
        "Wait for it, stop it, or give another folder to --out.",
    )


def _is_own(file: Path) -> bool:
    """Whether this process holds a lock."""
    status = file.stat()
    lock = _locks.get((status.st_dev, status.st_ino))
    return lock is not None and lock.is_locked


def _locked(path: Path) -> BaseFileLock:
    file = path / ".lock"
    require_own(file)  # filelock opens it by name, and would follow a link
    descriptor = open_own(file, os.O_RDWR | os.O_CREAT)
    status = os.fstat(descriptor)
    os.close(descriptor)
    lock = _locks.get((status.st_dev, status.st_ino))
    if lock is not None and lock.is_locked:  # not locked in a forked child
        return lock
    lock = FileLock(file, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise in_use(path) from None
    except OSError:  # some network file systems do not support locks: the run continues without
        pass
    with open(open_own(file, os.O_WRONLY | os.O_TRUNC), "w") as held:
        held.write(f"{os.getpid()} {socket.gethostname()}\n")
    _locks[status.st_dev, status.st_ino] = lock
    return lock


class RunFolder:
    """`RUN/`, opened for writing; no other process can open it while this object lives.

    Attributes:
        leftovers: Names of unfinished files of a killed process, which were removed.
    """

    leftovers: tuple[str, ...] = ()

    def __init__(self, path: Path, lock: BaseFileLock | None = None) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def create(cls, path: Path, *, resume: bool) -> RunFolder:
        """Creates and locks the folder, which must be new or empty unless a run is resumed.

        Raises:
            UsageError: The folder is not empty, or another process holds the lock.
            StorageError: It is not writable.
        """
        try:
            _require_free(path, resume)
            path.mkdir(parents=True, exist_ok=True)
            _require_no_special(path)
            lock = _locked(path)
            _require_free(path, resume)  # a run may have started and ended before the lock was taken
            probe = path / f".writable-{os.getpid()}"
            create_new(probe).close()
            probe.unlink()
            for name in _OWN_FILES:
                require_own(path / name)
            from beitcli.runtime.storage.checkpoint import (
                remove_leftovers,  # imports torch; a folder in use is reported without it
            )

            leftovers = [*_remove_leftovers(path), *remove_leftovers(path / "checkpoints")]
        except OSError as error:
            raise _unwritable(path, error) from None
        run = cls(path, lock)
        run.leftovers = tuple(leftovers)
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file atomically. Raises StorageError."""
        try:
            atomic_write_text(self.path / name, text)
        except OSError as error:
            raise _unwritable(self.path / name, error) from None

    def append_json(self, name: str, document: dict[str, Any]) -> None:
        """Appends a line to a JSON Lines file. Raises StorageError."""
        try:
            append_line(self.path / name, dump_json(document))
        except OSError as error:
            raise _unwritable(self.path / name, error) from None

    def remove(self, name: str) -> None:
        """Removes a file, if it is there. Raises StorageError."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.path / name, error) from None


def hold_run(path: Path) -> BaseFileLock | None:
    """Locks a run folder before a RunFolder is made of it, so that the run is seen to go on; None if that fails.

    It is locked as long as the lock is kept; a RunFolder of this process shares it.

    Raises:
        UsageError: Another process holds the lock.
    """
    try:
        return _locked(path)
    except OSError:  # which RunFolder reports
        return None


def _unwritable(path: Path, error: OSError) -> StorageError:
    """Returns the error of a file or of the whole run folder, with the way out that its reason has."""
    reason, blocked = error.strerror or str(error), error.filename if isinstance(error.filename, str) else ""
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTDIR):
        name = blocked if os.path.lexists(blocked) and "partial" not in blocked else path
        return StorageError(f"'{name}' cannot be written: {reason}.", "Move it away, or give another --out.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"'{path}' cannot be written: {reason}.", "Give a writable folder to --out.")
    return StorageError(f"'{path}' cannot be written: {reason}.", "Free space, or give another --out.")


class ReadOnlyRunFolder(RunFolder):
    """The run folder on ranks other than 0: it can be read, and writes do nothing."""

    def write_text(self, name: str, text: str) -> None: ...

    def append_json(self, name: str, document: dict[str, Any]) -> None: ...

    def remove(self, name: str) -> None: ...


def _remove_leftovers(path: Path) -> list[str]:
    """Removes unfinished files of a killed process, which held the lock before, and returns their names."""
    previews = path / PREVIEWS
    folders = [path] if previews.is_symlink() or not previews.is_dir() else [path, previews]
    entries = [entry for folder in folders for entry in folder.iterdir()]
    leftovers = sorted(entry for entry in entries if _UNFINISHED.fullmatch(entry.name) and entry.is_file())
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return [leftover.name for leftover in leftovers]


def _require_no_special(path: Path) -> None:
    """Raises StorageError for a pipe, socket or device in the folder, which a write would wait for."""
    for entry in path.iterdir():
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise StorageError(f"'{entry}' is a device, pipe or socket, not a file.", "Remove it.")


def _require_free(path: Path, resume: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out '{path}' is a file.", "Give a folder that is new or empty.")
    occupied = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    if occupied and not resume:
        if not (path / "config.toml").exists():
            raise UsageError(f"--out '{path}' is not empty.", "Give a folder that is new or empty.")
        if is_locked(path / ".lock") and not _is_own(path / ".lock"):
            raise in_use(path)
        raise UsageError(
            f"--out '{path}' is not empty: it holds a run.",
            "Add --resume to go on with that run. To start over, give another --out, or delete the folder first; "
            f"`{shell_line(['beit', 'report', str(path)])}` shows what is in it.",
        )
    if occupied and not (path / "config.toml").exists():
        raise UsageError(
            f"'{path}' is not empty and holds no run (no config.toml).",
            "Give a run, or a new folder, to --out.",
        )
