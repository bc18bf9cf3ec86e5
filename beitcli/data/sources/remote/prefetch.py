"""Threads that bring what is read soon into the cache, while batches are made of what is there.

Each process has its own, from when it first asks: loader workers are forked, and threads do not live on in them.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress

THREADS = 4


class ReadAhead:
    """Jobs that may fail unheard; each key is under way once."""

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
                with suppress(Exception):  # whoever reads it meets the same error, and tells it
                    job()
            finally:
                with self._lock:
                    self._pending.discard(key)
                    self._lock.notify_all()

    def finish(self) -> None:
        """Waits until nothing is under way: a process forked meanwhile would inherit locks that nobody frees."""
        if self._pid == os.getpid():
            with self._lock:
                self._lock.wait_for(lambda: not self._pending)


READ_AHEAD = ReadAhead()
