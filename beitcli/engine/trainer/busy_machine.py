"""Says that other work keeps the machine busy, where steps take longer than alone.

One thread gains little there: beside one busy core of two a step of pretraining took 346 ms on two threads and 300 ms
on one, on quiet cores 180 and 285 ms.
"""

from __future__ import annotations

import os

from beitcli.runtime.metric_text import counted


def busy_text(load: float, cores: int) -> str:
    """Returns how busy other work keeps the machine, where it takes more cores than there are; else nothing.

    Args:
        load: The load average before the job: processes that ran or waited for a core in the last minute.
        cores: Those of the whole machine, whose load it is, and not of this process alone.
    """
    if load <= cores:
        return ""
    return f"busy with other work: load average {load:.1f} on {counted(cores, 'core')}; alone, steps take less time"


def load_average() -> float:
    """Returns that of the last minute; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
