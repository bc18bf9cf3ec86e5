"""Disk cache of byte ranges of remote files: downloaded once for all processes of a machine.

BEIT_STREAM_CACHE_GB (50) limits its size; the least recently used ranges are evicted. A cache file is a range and its
CRC-32, so damaged ones are downloaded again. If the cache is not writable, or the disk is full, nothing is cached.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.hub.download import Remote
from beitcli.runtime.hub.http_ranges import read_range
from beitcli.runtime.hub.offline import is_offline
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.own_files import create_new, open_own, require_own
from beitcli.runtime.storage.regular_files import read_regular

VARIABLE = "BEIT_STREAM_CACHE_GB"
_DEFAULT_GB = 50.0
_LOCKS = 256  # lock files, shared by all ranges
_LOOKED_AGAIN = 64  # a process checks the folder's size each time it has written 1/64 of the limit
_CHECK_BYTES = 4
_written = 0  # bytes by this process since its last check
_writing = threading.Lock()  # room made for a range is taken by that range, not by another thread's


def _renew_lock() -> None:
    global _writing
    _writing = threading.Lock()  # a thread that held it is not in the forked process


os.register_at_fork(after_in_child=_renew_lock)


def limit_bytes() -> int:
    """Returns the maximum size of the cache in bytes.

    Raises:
        UsageError: The variable is not a number of at least 0.
    """
    given = os.environ.get(VARIABLE) or str(_DEFAULT_GB)
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise UsageError(f"{VARIABLE} is '{given}'; it must be a number of gigabytes.", f"Set {VARIABLE}=50.")
    return int(limit * 1e9)


def read_cached(remote: Remote, start: int, end: int, pauses: Sequence[float] | None = None) -> bytes:
    """Reads bytes [start, end) from the cache, else from the hub into the cache.

    Args:
        pauses: Seconds before each retry, as in `read_range`.

    Raises:
        StorageError: As in `read_range`, or the range is not cached and HF_HUB_OFFLINE is set.
    """
    path = _path(remote, start, end)
    kept = _load(path, end - start)
    if kept is not None:
        return kept
    if is_offline():
        raise StorageError(
            f"'{remote.label}' is kept in '{_folder()}' in part only, and HF_HUB_OFFLINE is set.",
            "Unset HF_HUB_OFFLINE, or pass the folder of a copy made on another machine.",
        )
    limit = limit_bytes()
    if end - start > limit:
        return read_range(remote, start, end, pauses)
    lock = _folder() / ".locks" / f"{zlib.crc32(str(path).encode()) % _LOCKS:03d}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        require_own(lock)  # the lock opens it by name, and would follow a link
        os.close(open_own(lock, os.O_RDWR | os.O_CREAT, 0o664))
    except OSError:  # the cache is not writable
        return read_range(remote, start, end, pauses)
    with WeakFileLock(lock):  # other processes wait instead of downloading it too
        kept = _load(path, end - start)
        if kept is None:
            kept = read_range(remote, start, end, pauses)
            _keep(path, kept, limit)
    return kept


def is_cached(remote: Remote, start: int, end: int) -> bool:
    """Whether the range has a cache file, which may be damaged."""
    return _path(remote, start, end).is_file()


def _folder() -> Path:
    return cache_folder() / "streams"


def _path(remote: Remote, start: int, end: int) -> Path:
    """Returns the path of a range, by content hash: a file that a new commit does not change keeps its ranges."""
    digest = hashlib.sha256(f"{remote.label} {remote.mark or remote.commit}".encode()).hexdigest()
    return _folder() / digest[:32] / f"{start}-{end}"


def _load(path: Path, length: int) -> bytes | None:
    """Reads a range from the cache; None if it is missing. A damaged one is removed."""
    try:
        content = read_regular(path)
    except OSError:
        return None
    body = memoryview(content)[:length]
    if len(content) != length + _CHECK_BYTES or zlib.crc32(body) != int.from_bytes(content[length:], "little"):
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)
    return bytes(body)


def _keep(path: Path, content: bytes, limit: int) -> None:
    global _written
    size = len(content) + _CHECK_BYTES
    beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writing:
            if _written == 0 or _written + size > limit / _LOOKED_AGAIN:
                _make_room(limit - size)
                _written = 0
            _written += size
            with create_new(beside) as file:
                file.write(content)
                file.write(zlib.crc32(content).to_bytes(_CHECK_BYTES, "little"))
            beside.replace(path)
    except OSError:  # such as a full disk
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _make_room(limit: int) -> None:
    """Evicts the least recently used ranges to below `limit` bytes, with a margin for writes between checks."""
    found: list[tuple[int, int, str]] = []
    for folder in os.scandir(_folder()):
        if folder.name.startswith(".") or not folder.is_dir(follow_symlinks=False):
            continue
        for entry in os.scandir(folder.path):
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                found.append((about.st_mtime_ns, about.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= limit - limit // _LOOKED_AGAIN:
        return
    for _, size, path in sorted(found):
        if total <= limit - 2 * (limit // _LOOKED_AGAIN):
            break
        with suppress(OSError):
            os.unlink(path)
        total -= size
