"""Runs `beit` in several processes forked from the test, with the environment that torchrun sets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from beitcli.cli.app import main
from tests.helpers.forked import Child, Ended


def in_processes(
    size: int, words: Sequence[object], *, before: Callable[[int], object] = lambda rank: None, seconds: float = 120
) -> list[Ended]:
    """Runs one command in `size` processes, and returns how each ended, by rank.

    Args:
        before: Called with the rank in each process, before the command.
    """
    children = start(size, words, before=before)
    return [child.ended(seconds) for child in children]


def start(size: int, words: Sequence[object], *, before: Callable[[int], object] = lambda rank: None) -> list[Child]:
    def work(rank: int) -> int:
        before(rank)
        return main([str(word) for word in words])

    return start_group(size, work)


def in_group(size: int, work: Callable[[int], int | None], seconds: float = 60) -> list[Ended]:
    """Runs `work(rank)` in `size` processes with the environment of ranks, and returns how each ended, by rank."""
    return [child.ended(seconds) for child in start_group(size, work)]


def start_group(size: int, work: Callable[[int], int | None]) -> list[Child]:
    port = free_port()

    def placed(rank: int) -> int | None:
        places = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return work(rank)

    return [Child(lambda rank=rank: placed(rank)) for rank in range(size)]  # type: ignore[misc]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
