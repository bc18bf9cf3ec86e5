"""What all processes do at the head of a training step: do it, stop, or raise what went wrong in one of them.

    head of step s:   read flag s -> fetch batch s + 1 -> send flag s + 1 -> compute step s

A process without its batch cannot take part in a step's collectives, so the others must know before they begin it.
The flag of a step is therefore reduced while the step before it is computed: no step waits for a round trip between
the processes, and all of them leave at the same one. A signal that comes after flag s + 1 was sent is in flag s + 2.

One process sends no flags: it fetches the batch at the head of its step, and a signal ends the run before that step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from beitcli.errors import BeitError
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.signals import StopRequest

_GO_ON, _STOP, _TROUBLE = range(3)
Fetched = TypeVar("Fetched")


class Lockstep(Generic[Fetched]):
    """Gives each step its batch once all processes are to do it.

    Args:
        fetch: Gives this process's part of the next batch; raises BeitError.

    Attributes:
        trouble: What went wrong in this process; in the next flag to be sent.
    """

    def __init__(self, fetch: Callable[[], Fetched], stop: StopRequest, world: DistributedContext) -> None:
        self.pending_error: BeitError | None = None
        self._fetch, self._stop, self._world = fetch, stop, world
        self._fetched: Fetched | None = None
        self._flag: Callable[[], int] | None = None

    def enter(self, *, is_last: bool) -> tuple[bool, Fetched]:
        """Before a step: whether all processes are to stop here, and this process's batch.

        Args:
            is_last: Whether no step follows this one.

        Raises:
            BeitError: What went wrong in one process, in all of them.
        """
        if self._flag is None:
            self._send_flag()
        command, fetched = self._read_flag(), self._fetched
        if command == _TROUBLE:
            self._world.raise_if_any_failed(self.pending_error)
        assert fetched is not None  # or the flag would have said so
        if command == _GO_ON and self._world.size > 1 and not is_last:
            self._send_flag()
        return command == _STOP, fetched

    def leave(self) -> None:
        """Reads what is still under way, before the processes leave the loop between two steps."""
        if self._flag is not None:
            self._read_flag()

    def _send_flag(self) -> None:
        self._fetched = None
        try:
            self._fetched = self._fetch()
        except BeitError as error:
            self.pending_error = self.pending_error or error
        self._flag = self._world.all_reduce_max_async(
            _TROUBLE if self.pending_error else _STOP if self._stop else _GO_ON
        )

    def _read_flag(self) -> int:
        assert self._flag is not None
        flag, self._flag = self._flag, None
        return flag()
