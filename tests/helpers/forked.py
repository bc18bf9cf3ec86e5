"""Runs a function in a forked child: real limits, signals and crashes, without the seconds of a new interpreter."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Ended:
    """Result of a child.

    Attributes:
        code: Its exit code; minus the signal number if it was killed.
    """

    code: int
    out: str
    err: str


class Child:
    """A forked child that runs `work()`, which returns its exit code (None is 0).

    Args:
        memory: Maximum bytes of address space, beyond those of the test.
        file_size: Maximum bytes of a file; a write beyond it is an error, as on a full disk.
        powerless: Drop root's capability to ignore file permissions.
    """

    def __init__(
        self,
        work: Callable[[], int | None],
        *,
        memory: int | None = None,
        file_size: int | None = None,
        powerless: bool = False,
    ) -> None:
        pipes = [os.pipe(), os.pipe()]  # not files, which are limited
        sys.stdout.flush(), sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, which are idle
            self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                os.setpgid(0, 0)
                _redirect([write for _, write in pipes])
                _limit(memory, file_size, powerless)
                code = work() or 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(BaseException):
                    sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        self._readers = []
        for read, write in pipes:
            os.close(write)
            self._readers.append(_Reader(read))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 60) -> Ended:
        """Waits for the child. One that takes longer is killed with its own children, and fails the test."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its own children, or itself
        if not pid:
            os.waitpid(self.pid, 0)
        texts = [reader.text() for reader in self._readers]
        assert pid, f"still running after {seconds} s: {texts[1][-2000:]}"
        return Ended(os.waitstatus_to_exitcode(status), *texts)


class _Reader(threading.Thread):
    """Reads a pipe to its end, so that the writer never blocks."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._file, self._read = open(descriptor, "rb"), b""  # noqa: SIM115 - closed by `run`
        self.start()

    def run(self) -> None:
        with self._file as file:
            self._read = file.read()

    def text(self) -> str:
        self.join()
        return self._read.decode(errors="replace")


def forked(work: Callable[[], int | None], seconds: float = 60, **limits: Any) -> Ended:
    """Runs `work` in a child and waits for it; `limits` are those of `Child`."""
    return Child(work, **limits).ended(seconds)


def _redirect(streams: list[int]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdin = open(os.devnull)  # noqa: SIM115


def _limit(memory: int | None, file_size: int | None, powerless: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, size + memory))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if powerless:
        drop_capabilities()


def drop_capabilities() -> None:
    """Drops all capabilities by capset(2): file permissions then apply to root too."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def read_only(folder: Path) -> Any:
    """Context in which `folder` is not writable."""
    folder.chmod(0o555)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
