"""Threads that wait do not hold a core for long; seen in what libgomp itself prints when torch loads it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from beitcli.runtime.thread_spin import SPINS, limit_thread_spin

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch comes with libgomp on Linux only")


def spins_of(program: list[str], variables: dict[str, str]) -> int:
    """Runs a program that loads torch; returns the number of spins that libgomp tells."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    kept |= {"OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(sys.path)} | variables
    done = subprocess.run([sys.executable, *program], env=kept, capture_output=True, text=True, check=True)
    told = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if told is None:
        pytest.skip("this torch has another OpenMP library")
    return int(told[1])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)],
    ids=["by default", "as asked", "by the policy asked for"],
)
def test_the_program_limits_the_spins_of_waiting_threads_unless_asked_otherwise(variables, expected):
    assert spins_of(["-m", "beitcli", "env", "--json"], variables) == expected
    assert spins_of(["-c", "import torch"], {}) > SPINS


def test_a_limit_that_is_asked_for_stays():
    for asked in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}):
        environment = dict(asked)
        limit_thread_spin(environment)
        assert environment == asked
    empty: dict[str, str] = {}
    limit_thread_spin(empty)
    assert empty == {"GOMP_SPINCOUNT": str(SPINS)}
