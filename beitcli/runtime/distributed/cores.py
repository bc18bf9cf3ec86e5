"""The cores that this process may run on; no torch."""

from __future__ import annotations

import os


def available_cores() -> tuple[int, ...]:
    """Returns the numbers of the cores that this process may run on; where the system does not say so, of all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
