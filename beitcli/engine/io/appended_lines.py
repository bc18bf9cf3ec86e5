"""A file of JSON lines that a job appends to, and may go on with when it was killed.

One that replaces an existing file is written beside it, and gets its name when the job has ended. One that goes on with
a file begins beside it too, with a copy of the lines that stay, and gets its name before the first line that is added.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from beitcli.engine.io.output_paths import is_stream
from beitcli.engine.io.write_output import open_stream, output_error
from beitcli.runtime.storage.own_files import create_new, remove_orphans, temporary_beside


class AppendedLines:
    """Writer of lines to a file, a pipe or a device.

    Args:
        keeps: Goes on with the file if it exists: whether a complete line of it stays; may raise to refuse the file.
            None to start an empty file. The file is left as it is until a line is added, or the job has ended.

    Raises:
        StorageError: The file cannot be written.
    """

    def __init__(self, path: Path, keeps: Callable[[bytes], bool] | None) -> None:
        self.path = path
        self._whole = Path(os.path.realpath(path))
        self._beside: Path | None = None
        self._goes_on = False
        if not is_stream(path):
            remove_orphans(self._whole)
            self._goes_on = keeps is not None and path.exists()
            if self._goes_on or (self._whole.is_file() and self._whole.stat().st_size):
                self._beside = temporary_beside(self._whole)
        try:
            file = self._open()
            self.file = TextIOWrapper(file, encoding="utf-8")
            if self._goes_on and keeps is not None:
                self._copy_whole_lines(file, keeps)
        except OSError as error:
            self._discard()
            raise output_error(self.path, error) from None
        except BaseException:
            self._discard()
            raise

    def _open(self) -> BinaryIO:
        if is_stream(self.path):
            return open_stream(self.path)
        if self._beside is None:
            return self.path.open("ab")
        file = create_new(self._beside)
        with suppress(OSError):  # held until it is closed: no other machine takes it for an orphan
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def _copy_whole_lines(self, target: BinaryIO, keeps: Callable[[bytes], bool]) -> None:
        """Copies the lines that stay, up to one that a killed process left incomplete."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                if keeps(line):
                    target.write(line)

    def _go_on(self) -> None:
        """Gives the copied lines the name of the file: until then it may be refused, and is as it was."""
        if self._goes_on and self._beside is not None:
            self.file.flush()
            self._beside.replace(self._whole)
            self._beside = None

    def _discard(self) -> None:
        if hasattr(self, "file"):
            with suppress(OSError):
                self.file.close()
        if self._beside is not None:
            with suppress(OSError):
                self._beside.unlink(missing_ok=True)

    def write(self, line: str) -> None:
        """Adds a line, given without its end. Raises StorageError."""
        try:
            self._go_on()
            self.file.write(f"{line}\n")
        except OSError as error:
            raise output_error(self.path, error) from None

    def flush(self) -> None:
        """Gives what was added to the operating system, so that a killed job keeps it. Raises StorageError."""
        try:
            self.file.flush()
        except OSError as error:
            raise output_error(self.path, error) from None

    def close(self, *, done: bool) -> None:
        """Closes the file; `done`: the job has ended, and what it replaces is replaced. Raises StorageError."""
        try:
            if done:
                self._go_on()
            self.file.close()
            if self._beside is not None and done:
                self._beside.replace(self._whole)
            elif self._beside is None:
                os.stat(self.path)  # fails if the file was removed meanwhile
        except OSError as error:
            raise output_error(self.path, error) from None
        finally:
            if self._beside is not None:
                self._beside.unlink(missing_ok=True)
