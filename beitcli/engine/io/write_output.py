"""Writes an output that the user named.

A regular file is written whole or not at all, with the umask's mode. A link that the user named is followed; a pipe or
a device is written into.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from beitcli.engine.io.output_paths import descriptor_of, is_stream
from beitcli.errors import ReaderGone, StorageError
from beitcli.runtime.storage.own_files import atomic_write, remove_orphans

if TYPE_CHECKING:
    pass


def write_output(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes an output that the user named: a regular file atomically, of a link the file that it points to.

    A pipe, a terminal or another device is written into, and never replaced.

    Raises:
        StorageError: The disk is full or the folder cannot be written; an existing file is unchanged.
    """
    if not is_stream(path):
        whole = Path(os.path.realpath(path))
        remove_orphans(whole)
        replace_file(whole, path, write)
        return
    content = BytesIO()  # archives seek, which a pipe cannot
    write(content)
    try:
        with open_stream(path) as file:
            file.write(content.getbuffer())
    except BrokenPipeError as error:
        if descriptor_of(path) == 1:
            raise ReaderGone(*error.args) from None
        raise output_error(path, error) from None
    except OSError as error:
        raise output_error(path, error) from None


def open_stream(path: Path) -> BinaryIO:
    """Opens a pipe, device or descriptor of this process for writing; a pipe waits for its reader. Raises OSError."""
    number = descriptor_of(path)
    return open(os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb")


def replace_file(path: Path, shown: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a regular file whole or not at all; `shown` is its path in the StorageError of a failure."""
    try:
        atomic_write(path, write)
    except OSError as error:
        raise output_error(shown, error) from None


def output_error(path: Path, error: OSError) -> StorageError:
    """Returns the error of an output that cannot be written."""
    return StorageError(
        f"'{path}' cannot be written: {error.strerror or error}.", "Free space, or give another output."
    )
