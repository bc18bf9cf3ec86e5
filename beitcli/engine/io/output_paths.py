"""What an output path leads to: a pipe or descriptor of this process, stdout, a folder that can be made."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from beitcli.errors import StorageError

if TYPE_CHECKING:
    pass


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a terminal, another device, or a descriptor of this process, which is written into."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_stdout(output: str | None) -> bool:
    """Whether an output is the process's stdout, as `-`, /dev/stdout or a link to it."""
    return output == "-" or (output is not None and descriptor_of(Path(output)) == 1)


def descriptor_of(path: Path) -> int | None:
    """Returns N if the path leads to /dev/fd/N or /proc/self/fd/N: opening that again would start at its beginning."""
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        try:
            path = Path(folder, os.readlink(path))
        except (OSError, ValueError):
            return None
    return None


def make_folder(folder: Path) -> Path:
    """Creates a folder; raises StorageError if it cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unmakeable(folder, error.strerror or error) from None
    if not os.access(folder, os.W_OK):
        raise _unwritable(folder)
    return folder


def require_folder(folder: Path) -> None:
    """Raises the StorageError of `make_folder` for a folder that cannot be made, and makes nothing."""
    there = whole = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise _unmakeable(folder, os.strerror(errno.EEXIST if there == whole else errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder) if there == whole else _unmakeable(folder, os.strerror(errno.EACCES))


def _unmakeable(folder: Path, reason: object) -> StorageError:
    return StorageError(f"Output folder '{folder}' cannot be made: {reason}.", "Give a writable folder.")


def _unwritable(folder: Path) -> StorageError:
    return StorageError(f"Output folder '{folder}' cannot be written.", "Give a writable folder.")
