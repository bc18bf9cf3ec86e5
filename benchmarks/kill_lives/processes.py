"""Starts commands of `beit`, and follows all that descends from them through /proc. Linux only.

This process becomes the parent of orphans (`adopt_orphans`), so that a process which outlives its run is found whatever
its parent was, and the processor time of all is counted when it is reaped.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_TICK = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def start(words: Sequence[str], said: Path, environment: Mapping[str, str], *, cold: bool) -> int:
    """Starts `beit WORDS` in a session of its own, and returns its pid.

    Args:
        said: File for its stderr; stdout goes to /dev/null.
        cold: As a new Python; else as a fork of this process, which has imported everything.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, os.devnull, os.O_WRONLY)):
            os.dup2(os.open(name, flags), number)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.environ.update(environment)
        if cold:
            os.execv(sys.executable, [sys.executable, "-m", "beitcli", *words])
        sys.argv = ["beit", *words]
        from beitcli.__main__ import run

        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(BaseException):  # what an interpreter does at its end
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stderr.flush()
        os._exit(code)


def below(pid: int) -> list[int]:
    """Lists the processes that a process has started, and those that they have."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in children.read_text().split()]
        except OSError:  # it has just ended
            continue
    return found + [each for child in found for each in below(child)]


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X"]


def is_alive(pid: int) -> bool:
    return _fields(pid)[0] not in "ZX"


def processor_seconds(pid: int) -> float:
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK if len(fields) > 12 else 0.0


def hears(pid: int, number: int) -> bool:
    """Whether a process has come to handle, block or ignore a signal; Python itself takes some 50 ms until it can."""
    try:
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return any(int(lines[name], 16) >> (number - 1) & 1 for name in ("SigCgt", "SigBlk", "SigIgn"))
    except (OSError, KeyError):
        return True


class Reaper:
    """Waits for children of this process, adopted ones too.

    Attributes:
        codes: pid -> exit code, minus the signal's number.
        seconds: Processor time of all that were reaped, and of those that they had reaped.
    """

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.seconds = 0.0

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.codes[pid] = os.waitstatus_to_exitcode(status)
            self.seconds += usage.ru_utime + usage.ru_stime

    def wait(self, pids: Iterable[int], seconds: float) -> bool:
        """Whether all have ended within the time."""
        end = time.monotonic() + seconds
        while True:
            self.reap()
            if all(pid in self.codes for pid in pids):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.005)


class Clock:
    """Seconds as an idle machine would show them: in each interval, the most that one of the processes computed."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.roots, self.seconds = roots, 0.0
        self._before = self._now()

    def _now(self) -> dict[int, float]:
        return {pid: processor_seconds(pid) for root in self.roots for pid in (root, *below(root))}

    def read(self) -> float:
        now = self._now()
        self.seconds += max((after - self._before.get(pid, 0.0) for pid, after in now.items()), default=0.0)
        self._before = now
        return self.seconds
