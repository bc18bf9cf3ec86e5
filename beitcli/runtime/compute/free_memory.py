"""How much memory a process may still take: of the machine, or of its container if that has less."""

from __future__ import annotations

import os
from pathlib import Path

# Limit, use and statistics of cgroup v2 and v1, as a container sees them.
_OF_CONTAINER = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory() -> int | None:
    """Returns bytes; None where the system does not say."""
    found = [each for each in (_of_machine(), *(_left(*files) for files in _OF_CONTAINER)) if each is not None]
    return min(found) if found else None


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError, AttributeError):  # macOS has no such value
        return None


def _left(folder: str, limit: str, used: str, cached: str) -> int | None:
    """Returns what a container's limit leaves; its page cache gives way, and is not counted."""
    try:
        of_cache = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        taken = int(Path(folder, used).read_text()) - int(of_cache.get(cached, 0))
        return max(0, int(Path(folder, limit).read_text()) - taken)
    except (OSError, ValueError):  # no container, or `max`
        return None
