"""Keeps the ranks in lockstep: at the start of a step all run it, all stop, or all raise the error of one.

    start of step s:  read flag s -> fetch batch s + 1 -> send flag s + 1 -> compute step s

A rank without its batch cannot take part in the collectives of a step, so the other ranks must know before they start
it. The flag of a step is therefore reduced during the previous step: no step waits for a round trip between the ranks,
and all leave at the same step. A signal that comes after flag s + 1 was sent is in flag s + 2.

A single process sends no flags: it fetches the batch at the start of the step, and a signal ends the run before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from beitcli.errors import BeitError
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.signals import StopRequest

_GO_ON, _STOP, _FAILED = range(3)
Fetched = TypeVar("Fetched")


class Lockstep(Generic[Fetched]):
    """Returns the batch of each step once all ranks are ready to run it.

    Args:
        fetch: Returns this rank's part of the next batch; raises BeitError.

    Attributes:
        pending_error: Error of this rank, sent with the next flag.
    """

    def __init__(self, fetch: Callable[[], Fetched], stop: StopRequest, world: DistributedContext) -> None:
        self.pending_error: BeitError | None = None
        self._fetch, self._stop, self._world = fetch, stop, world
        self._fetched: Fetched | None = None
        self._flag: Callable[[], int] | None = None

    def enter(self, *, is_last: bool) -> tuple[bool, Fetched]:
        """Called before a step: returns whether all ranks are to stop here, and this rank's batch.

        Args:
            is_last: Whether no step follows this one.

        Raises:
            BeitError: That of one rank, on all ranks.
        """
        if self._flag is None:
            self._send_flag()
        command, fetched = self._read_flag(), self._fetched
        if command == _FAILED:
            self._world.raise_if_any_failed(self.pending_error)
        assert fetched is not None  # else the flag would be _FAILED
        if command == _GO_ON and self._world.size > 1 and not is_last:
            self._send_flag()
        return command == _STOP, fetched

    def leave(self) -> None:
        """Completes a pending reduction, before the ranks leave the loop between two steps."""
        if self._flag is not None:
            self._read_flag()

    def _send_flag(self) -> None:
        self._fetched = None
        try:
            self._fetched = self._fetch()
        except BeitError as error:
            self.pending_error = self.pending_error or error
        self._flag = self._world.all_reduce_max_async(
            _FAILED if self.pending_error else _STOP if self._stop else _GO_ON
        )

    def _read_flag(self) -> int:
        assert self._flag is not None
        flag, self._flag = self._flag, None
        return flag()
