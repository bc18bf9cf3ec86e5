"""How long torch's CPU threads spin while they wait for each other, which is decided before torch is imported.

On Linux torch comes with libgomp, whose threads spin for 300,000 iterations at the end of each parallel region. On a
machine with other work, a thread then spins for milliseconds while the one that it waits for has no core, thousands of
times a step. libgomp reads the limit from the environment when it is loaded.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = 6_000  # a quiet machine computes about as fast, one with a busy core nine times faster (docs/performance.md)
_SPIN_COUNT, _ASKED_FOR = "GOMP_SPINCOUNT", ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_thread_spin(environment: MutableMapping[str, str]) -> None:
    """Lets threads sleep after `SPINS` iterations of waiting, unless the environment says how they are to wait."""
    if not any(name in environment for name in _ASKED_FOR):
        environment[_SPIN_COUNT] = str(SPINS)
