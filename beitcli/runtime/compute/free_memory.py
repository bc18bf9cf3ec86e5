"""How much memory a process may still take: of the machine, or of its control groups if one has less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Controller, folder, and its files of limit, use and page cache, of control groups of version 2 and 1.
_GROUPS = (
    ("", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(own_groups: Path = Path("/proc/self/cgroup")) -> int | None:
    """Returns bytes; None where the system does not say."""
    found = [_of_machine()]
    for controller, root, *files in _GROUPS:
        found += [_left(folder, *files) for folder in group_folders(own_groups, controller, Path(root))]
    return min((each for each in found if each is not None), default=None)


def group_folders(own_groups: Path, controller: str, root: Path) -> Iterator[Path]:
    """Yields the folder of this process's control group, and those above it: a limit of any of them holds.

    In a container of its own namespace that is the root alone; under Slurm or systemd the limit lies below.

    Args:
        own_groups: File of lines NUMBER:CONTROLLERS:PATH.
        controller: Empty for version 2.
    """
    yield root
    try:
        lines = [line.split(":", 2) for line in own_groups.read_text().splitlines()]
    except OSError:
        return
    for path in (path for _, names, path in lines if controller in names.split(",")):
        folder = root
        for part in Path(path.lstrip("/")).parts:
            if part == "..":  # a group beside that of the namespace, which is not seen from here
                break
            folder /= part
            yield folder


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


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Returns what a group's limit leaves; its page cache gives way, and is not counted."""
    try:
        of_cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text()) - int(of_cache.get(cached, 0))
        return max(0, int((folder / limit).read_text()) - taken)
    except (OSError, ValueError):  # no group, or `max`
        return None
