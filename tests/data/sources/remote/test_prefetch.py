"""Threads that read ahead: jobs that fail leave neither a dead thread nor a key behind."""

from __future__ import annotations

import threading

from beitcli.data.sources.remote.prefetch import THREADS, ReadAhead


def test_jobs_that_fail_end_no_thread_and_leave_no_key_pending() -> None:
    ahead, again = ReadAhead(), threading.Event()

    def fail() -> None:
        raise ValueError("not what readers raise")

    for key in range(2 * THREADS):
        ahead.ask(key, fail)
    waiting = threading.Thread(target=ahead.finish, daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()
    ahead.ask(0, again.set)
    assert again.wait(20)
