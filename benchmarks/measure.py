"""What every benchmark shares: peers and ours in turn in one process, hardware and versions beside the metrics.

Cores are shared and noisy, so a claim is a ratio: each round runs every contestant once, in an order that turns with
the round, and the ratio is taken within the round. The median over rounds is reported with its quartiles.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "transformers", "pillow", "numpy")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, GPU, versions."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0], "n": len(values)}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def gather_interleaved(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, *, peer: str, warmup: int = 1
) -> dict[str, dict[str, dict[str, float]]]:
    """Runs every contestant once a round.

    Args:
        contestants: Name to a call that does the same work; what it returns, if a float, is the processor seconds that
            another process spent on it.
        peer: Whose time the ratios are of.

    Returns:
        For each name, as `spread`: `seconds` and `cpu_seconds` (of this process, all threads), and how many times fewer
        than the peer's in the same round, `times_faster` and `times_less_cpu`.
    """
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    worked: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start, cpu = time.perf_counter(), time.process_time()
            elsewhere = contestants[name]()
            if number >= 0:
                taken[name].append(time.perf_counter() - start)
                apart = elsewhere if isinstance(elsewhere, float) else 0.0
                worked[name].append(time.process_time() - cpu + apart)
    return {
        name: {
            "seconds": spread(seconds),
            "times_faster": spread([theirs / own for theirs, own in zip(taken[peer], seconds, strict=True)]),
            "cpu_seconds": spread(worked[name]),
            "times_less_cpu": spread([theirs / own for theirs, own in zip(worked[peer], worked[name], strict=True)]),
        }
        for name, seconds in taken.items()
    }


def report(question: str, results: Mapping[str, Any], output: str | None) -> None:
    """One JSON document: to the file `output` where given, else to stdout."""
    document = json.dumps({"question": question, "hardware": hardware(), "results": results}, indent=2)
    if output:
        Path(output).write_text(document + "\n")
    else:
        sys.stdout.write(document + "\n")
