"""Who works on a run: asked without taking its lock, which `RunFolder` does."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_locked(file: Path) -> bool:
    """Whether a process holds a run's lock. A shared lock is tried, for an instant."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def holder(file: Path) -> str:
    """Returns the process that took a lock last, as it is named in its file."""
    pid, _, host = file.read_text(errors="replace").strip().partition(" ")
    return f"process {pid} on {host}" if host else "another process"
