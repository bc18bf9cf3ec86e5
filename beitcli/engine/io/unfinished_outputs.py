"""What an unfinished command has written into a folder, so that the same command, given again, may replace it.

`.beit-unfinished` in the folder holds the SHA-256 of the command's settings, then a line for each output: size, time,
inode and name, or `absent` and the name where the command began with no such file. A file that has changed since is no
longer the command's own. A command that ends leaves no `.beit-unfinished`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from beitcli.config.fields import settings_of
from beitcli.runtime.storage.own_files import open_own
from beitcli.runtime.storage.regular_files import open_regular

_NAME = ".beit-unfinished"
_ABSENT = "absent"
_MOST_BYTES = 1 << 30  # of some ten million outputs
_NOT_OF_THE_COMMAND = {  # settings that may differ when it is given again
    "overwrite", "resume", "device", "workers", "batch_size", "gpus", "nodes", "rdzv_endpoint", "rdzv_timeout",
    "process_timeout", "max_restarts",
}  # fmt: skip


def is_unfinished(folder: str | Path) -> bool:
    """Whether some command has left the folder unfinished, perhaps this one."""
    return os.path.lexists(os.path.join(folder, _NAME))


class UnfinishedOutputs:
    """The outputs of a command in a folder. Never fails: without it a command is only refused more often."""

    def __init__(self, folder: Path, config: Any) -> None:
        """
        Args:
            folder: Need not exist.
            config: The command's settings; all but those of the machine, `--overwrite` and `--resume` make it the
                same one.
        """
        self._file = folder / _NAME
        names = sorted(set(settings_of(type(config))) - _NOT_OF_THE_COMMAND)
        given = {name: getattr(config, name) for name in names}
        self._command = hashlib.sha256(repr((config.command, given)).encode(errors="surrogateescape")).hexdigest()
        self._own = self._read()

    def _read(self) -> dict[str, str]:
        """Returns the stamp of each output of the same command, by name."""
        with suppress(OSError), open_regular(self._file) as file:
            if file.readline(len(self._command) + 1) == f"{self._command}\n".encode():
                lines = os.fsdecode(file.read(_MOST_BYTES)).split("\n")
                return {name: stamp for stamp, _, name in (line.partition(" ") for line in lines)}
        return {}

    def holds(self, path: Path) -> bool:
        """Whether the file is as this command left it when it ended early, or was not there when it began."""
        return path.parent == self._file.parent and self._own.get(path.name) in (_ABSENT, _stamp(path))

    def begin(self, outputs: Iterable[Path]) -> None:
        """Notes the outputs that are not there yet: whatever process writes them, they are the command's own."""
        self._append({path.name: _ABSENT for path in outputs if path.name not in self._own and not _stamp(path)})

    def wrote(self, path: Path) -> None:
        """Notes an output that is complete."""
        self._append({path.name: _stamp(path)})

    def _append(self, stamps: dict[str, str]) -> None:
        if not stamps:
            return
        with suppress(OSError):
            start = f"{self._command}\n" if not self._own else ""
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if start else os.O_APPEND)
            self._own |= stamps
            with open(open_own(self._file, flags), "wb") as file:
                file.write(os.fsencode(start + "".join(f"{stamp} {name}\n" for name, stamp in stamps.items())))

    def end(self) -> None:
        """Forgets the outputs: the command has ended as it should, and they are the user's."""
        if self._own:
            with suppress(OSError):
                self._file.unlink()


def _stamp(path: Path) -> str:
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    return f"{status.st_size},{status.st_mtime_ns},{status.st_ino}"
