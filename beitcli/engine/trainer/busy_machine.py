"""Says that other work keeps the machine busy: steps take longer then, and one thread may be faster than several."""

from __future__ import annotations

import os

import torch

from beitcli.runtime.metric_text import counted


def busy_text(load: float, cores: int) -> str:
    """Returns how busy other work keeps the machine, where it takes more cores than there are; else nothing.

    Args:
        load: The load average before the job: processes that ran or waited for a core in the last minute.
        cores: Those of the whole machine, whose load it is, and not of this process alone.
    """
    return f"busy with other work: load average {load:.1f} on {counted(cores, 'core')}" if load > cores else ""


def fewer_threads_text(device: torch.device) -> str:
    """Returns what may make steps faster on a busy machine; nothing where they do not wait for several threads."""
    several = device.type == "cpu" and torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ
    return "; OMP_NUM_THREADS=1 in front of the command may be faster" if several else ""


def load_average() -> float:
    """Returns that of the last minute; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
