"""Files inside run folders and caches, which others may be able to write to, and the atomic writer of every file.

A link that somebody left in place of such a file would lead a write into any file of the user, a pipe would block it.
So they are opened without following a link, and only if they are regular files; temporary files are new ones.
Errors are OSError, whose `strerror` says what is in the way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from beitcli.errors import StorageError

_NAME_BYTES = 200  # of a temporary file's name, which may have 255 with the PID
_KINDS = ((stat.S_ISLNK, "a link, which is not followed"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"))


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """Opens a regular file and returns its descriptor.

    Raises:
        OSError: It cannot be opened, or a link, a folder, a pipe or a device is in its place.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError:
        require_own(path)
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _in_the_way(path, status.st_mode)
    return descriptor


def require_own(path: Path) -> None:
    """Raises OSError if what is at `path` is no regular file; does nothing if there is nothing."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _in_the_way(path, mode)


def _in_the_way(path: Path, mode: int) -> OSError:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
    return OSError(errno.ELOOP if stat.S_ISLNK(mode) else errno.EISDIR, f"it is {kind}, and no file", str(path))


def not_permitted(path: str | Path) -> StorageError:
    """Returns the error of a run's or model's file that this user may not read."""
    return StorageError(
        f"'{path}' cannot be read: permission denied.",
        "Ask its owner to run: chmod -R a+rX, with the name of the run; nothing is damaged.",
    )


def append_line(path: Path, line: str) -> None:
    """Appends a line to a regular file, which is created if missing. Raises OSError."""
    with open(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8") as file:
        file.write(line + "\n")


def temporary_beside(path: Path) -> Path:
    """Returns the name of this process's temporary file for `path`, in the same folder."""
    name = os.fsencode(path.name)[:_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}")


def remove_orphans(path: Path) -> None:
    """Removes temporary files for `path` of processes that were killed. Never fails.

    That of a process that lives here stays, by its number. On another machine only one that holds a lock of the file
    does (`AppendedLines`): those of `atomic_write` hold none.
    """
    own = re.compile(re.escape(temporary_beside(path).name.removesuffix(str(os.getpid()))) + "([0-9]{1,9})")
    with suppress(OSError):
        names = [name for name in os.listdir(path.parent) if name.startswith(".")]
        for number in map(own.fullmatch, names):
            if number and not _is_alive(int(number[1])):
                _remove_unlocked(path.with_name(number[0]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError), open(open_own(path, os.O_RDWR), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def create_new(path: Path) -> BinaryIO:
    """Creates a file for writing, in place of what a killed process left there; never opens an existing one."""
    with suppress(FileNotFoundError):
        path.unlink()
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "w+b")


def atomic_write(path: Path, write: Callable[[BinaryIO], object], *, sync: bool = False) -> None:
    """Writes a file whole or not at all, with the mode of the umask; a link at `path` is replaced, not followed.

    Args:
        sync: Whether the file is on disk before it gets its name.

    Raises:
        OSError: The disk is full or the folder cannot be written; an existing file is unchanged.
    """
    beside = temporary_beside(path)
    try:
        with create_new(beside) as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """`atomic_write` of text as UTF-8."""
    atomic_write(path, lambda file: file.write(text.encode()), sync=sync)


def remove_entry(path: Path) -> None:
    """Removes a file, a link (not what it points to), or a folder with its contents. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Gives a file the mode of a new one: safetensors creates its own with 0600, whatever the umask."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    try:  # reading it by setting it would change the mode of files that other threads create meanwhile
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))
    except (OSError, StopIteration, ValueError):
        umask = os.umask(0o077)
        os.umask(umask)
        return umask
