"""The standard streams when they are closed, when their disk is full, and when their reader has gone.

A job is worth more than its messages: nothing that happens to stderr ends it. Results that cannot be written to stdout
do, quietly if the reader has gone (`| head`), else with a StorageError. A stream that was closed on purpose (`>&-`) is
as /dev/null.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from beitcli.errors import ReaderGone, StorageError

before_output: Callable[[], None] | None = None
"""Called before anything is written, as long as it is set: what it shows gives way."""

_NAMED = {
    errno.ENOSPC: "Free space, then run the command again; runs go on with --resume.",
    errno.EDQUOT: "Free space within the quota, then run the command again; runs go on with --resume.",
    errno.EFBIG: "The file system or a limit (ulimit -f) allows no larger file: write elsewhere.",
    errno.EROFS: "Write elsewhere: the file system is read-only.",
    errno.EACCES: "Change its permissions (chmod), or name another place.",
    errno.EPERM: "Change its permissions (chmod), or name another place.",
}


def open_closed_streams() -> None:
    """Opens /dev/null as each of the descriptors 0 to 2 that is closed.

    Otherwise the next file that the program opens becomes its stdout or stderr, and gets what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process


class Stderr:
    """`sys.stderr` as a file that never fails: after the first failed write all goes to /dev/null."""

    def write(self, text: str) -> int:
        _give_way()
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            _to_nowhere(sys.stderr)
            return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            _to_nowhere(sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def _give_way() -> None:
    shown = before_output  # another thread may withdraw it meanwhile
    if shown is not None:
        shown()


def write_stdout(content: str | bytes) -> None:
    """Writes results at once.

    Raises:
        ReaderGone: The reader has gone.
        StorageError: They cannot be written.
    """
    _give_way()
    try:
        if isinstance(content, bytes):
            sys.stdout.buffer.write(content)
        else:
            _write_text(content)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone(*error.args) from None
    except OSError as error:
        raise stdout_error(error) from None


def _write_text(text: str) -> None:
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:  # bytes of a file name that are no text
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def stdout_error(error: OSError) -> StorageError:
    """Returns the error of a stdout that cannot be written, whose buffer is dropped."""
    close_stdout()
    return StorageError(
        f"Results cannot be written to stdout: {error.strerror or error}.", "Free space, or send them elsewhere."
    )


def close_stdout() -> None:
    """Redirects stdout to /dev/null after a failed write, so that Python's flush at exit does not fail."""
    _to_nowhere(sys.stdout)


def _to_nowhere(stream: Any) -> None:
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def with_way_out(error: Exception) -> Exception:
    """Returns a StorageError in place of an OSError that a user can mend: no space, no permission."""
    if not isinstance(error, OSError) or error.errno not in _NAMED:
        return error
    what = f"'{error.filename}'" if error.filename else "A file"
    named = StorageError(f"{what} cannot be used: {error.strerror}.", _NAMED[error.errno])
    named.__cause__ = error
    return named
