"""Background threads that prefetch remote data into the cache.

Each process starts its own at the first job: loader workers are forked, and threads do not survive a fork.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress

THREADS = 4


class ReadAhead:
    """Thread pool whose jobs may fail silently; a pending key is not queued again."""

    def __init__(self) -> None:
        self._pid = 0

    def ask(self, key: Hashable, job: Callable[[], object]) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock, self._pending = threading.Condition(), set[Hashable]()
            self._jobs: queue.SimpleQueue[tuple[Hashable, Callable[[], object]]] = queue.SimpleQueue()
            for _ in range(THREADS):
                threading.Thread(target=self._work, daemon=True).start()
        with self._lock:
            if key in self._pending:
                return
            self._pending.add(key)
        self._jobs.put((key, job))

    def _work(self) -> None:
        while True:
            key, job = self._jobs.get()
            try:
                with suppress(Exception):  # the reader gets the same error and reports it
                    job()
            finally:
                with self._lock:
                    self._pending.discard(key)
                    self._lock.notify_all()

    def finish(self) -> None:
        """Waits for all jobs; call it before a fork, because a child would inherit locks that are never released."""
        if self._pid == os.getpid():
            with self._lock:
                self._lock.wait_for(lambda: not self._pending)


READ_AHEAD = ReadAhead()
