"""Freed memory that stays in the process: no page faults in the second of two equal steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

STEPS = """
import resource, sys
from beitcli.runtime.allocator import keep_freed_memory, keep_less_in_worker
if sys.argv[1] != "off":
    keep_freed_memory()
if sys.argv[1] == "worker":
    keep_less_in_worker()
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    before = faults()
    kept = [np.ones(3 << 20, dtype=np.uint8) for _ in range(70)]  # too small for huge pages
    del kept
    return faults() - before

step()
print(min(step() for _ in range(3)))
"""
_PAGES = (70 * 3 << 20) // 4096


def faults(how: str, **environment: str) -> int:
    own = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-c", STEPS, how]
    done = subprocess.run(command, capture_output=True, text=True, env=kept | environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_step_takes_the_pages_of_the_one_before() -> None:
    assert faults("on") < _PAGES // 20
    assert faults("off") > _PAGES // 3


def test_a_loader_process_gives_large_memory_back() -> None:
    assert faults("worker") > _PAGES // 10


def test_the_environment_s_own_settings_stay() -> None:
    assert faults("on", MALLOC_TRIM_THRESHOLD_="131072") > _PAGES // 3
