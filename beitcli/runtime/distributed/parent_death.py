"""Kills a process when its parent process dies, for whatever reason (stdlib only)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 1.0


def end_with_parent(parent: int | None = None) -> None:
    """Has this process killed when its parent dies: by the kernel on Linux, by a polling thread elsewhere.

    Args:
        parent: PID of the parent, if the caller knows it; a parent that is dead already is then noticed too.
    """
    parent = os.getppid() if parent is None else parent
    if not (sys.platform == "linux" and _set_death_signal()):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_launcher() -> None:
    """Has a rank of `beit --gpus` killed when its launcher dies; does nothing in other processes."""
    launcher = os.environ.get("BEIT_LAUNCHER", "")
    if "BEIT_LAUNCH" in os.environ and "RANK" in os.environ and launcher.isdecimal():
        end_with_parent(int(launcher))


def living_ranks(launcher: int) -> int | None:
    """Returns how many child processes of a launcher are alive; None where that is not known (not Linux)."""
    try:
        tasks = os.listdir(f"/proc/{launcher}/task")
        children = [pid for task in tasks for pid in _read(f"/proc/{launcher}/task/{task}/children").split()]
        return sum(_is_rank(pid) for pid in children)
    except OSError:
        return None


def _is_rank(pid: str) -> bool:
    try:
        state = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
        return state not in "ZX" and "\0RANK=" in "\0" + _read(f"/proc/{pid}/environ")
    except OSError:  # it has just ended
        return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _set_death_signal() -> bool:
    import ctypes

    try:
        return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
