"""Kills a process when its parent process dies, for whatever reason (stdlib only)."""

from __future__ import annotations

import ctypes
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
    if not (sys.platform == "linux" and _asked_of_the_kernel()):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _asked_of_the_kernel() -> bool:
    try:
        return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
