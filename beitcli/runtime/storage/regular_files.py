"""Opens regular files only (stdlib only): a pipe in a folder of others may never answer, and a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_Path = str | bytes | Path


def open_regular(path: _Path) -> BufferedReader:
    """Opens a file for reading; never waits for a writer.

    Raises:
        OSError: It cannot be opened, or is a folder, pipe, socket or device.
    """
    return open(path, "rb", opener=regular_descriptor)


def read_regular(path: _Path) -> bytes:
    """Reads a file; raises as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def read_untouched(path: _Path, size: int) -> bytes:
    """Reads the first bytes of a file, `size` at most, and leaves the time of its last access as it is.

    Raises:
        OSError: As of `open_regular`; or the system, or the file's owner, does not leave that time to a reader.
    """
    if not hasattr(os, "O_NOATIME"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), os.fspath(path))
    with open(path, "rb", opener=lambda name, flags: regular_descriptor(name, flags | os.O_NOATIME)) as file:
        return file.read(size)


def require_regular(path: _Path) -> None:
    """Raises as `open_regular` does, for libraries that open a path themselves."""
    _require(os.stat(path).st_mode, path)


def regular_descriptor(path: _Path, flags: int) -> int:
    """Returns a descriptor as `os.open` does; raises as `open_regular` does."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe without a reader
            raise _special(path) from None
        raise
    try:
        _require(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require(mode: int, path: _Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise _special(path)


def _special(path: _Path) -> OSError:
    return OSError(errno.EINVAL, "a device, pipe or socket, not a file", os.fspath(path))
