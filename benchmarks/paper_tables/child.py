"""How the process of a cell runs: its variables, its end, and what it printed and left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from paper_tables.code_version import ROOT


def environment() -> dict[str, str]:
    """Returns the variables of every command: one thread, no settings from outside, the program of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")} | {"PYTHONPATH": path}


def curve_of(file: Path) -> list[tuple[int, float]]:
    """Returns the accuracy on held-out images at each step where it was measured."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line["step"], line["held_out_top1"]) for line in lines if "held_out_top1" in line]


def ended(pid: int, stop: threading.Event) -> tuple[int, float]:
    """Waits for a child process. Returns its exit code and its processor seconds, which depend little on other load."""
    while True:
        waited, status, usage = os.wait4(pid, os.WNOHANG)
        if waited:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if stop.is_set():
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)


def document_of(printed: bytes) -> dict[str, Any] | None:
    """Returns the JSON document on the last line that a command printed; None if there is none."""
    lines = printed.decode(errors="replace").splitlines()
    try:
        document = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
