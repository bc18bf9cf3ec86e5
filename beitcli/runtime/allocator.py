"""Has the C library keep the memory that it is given back, on Linux with glibc.

By default glibc returns freed blocks of some megabytes to the kernel, and the next step gets them page by page, zeroed:
some ten thousand page faults a training step on a CPU. The program, not `import beitcli`, asks it to keep them.
"""

from __future__ import annotations

import os
from contextlib import suppress

IN_TRAINING = 2**31 - 1  # bytes that may stay unused at the end of the heap; the largest number that glibc takes
IN_WORKER = 128 << 20  # of each loader process: one huge image must not stay reserved in all of them
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>
_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_asked = False


def keep_freed_memory() -> None:
    """Keeps freed memory in this process and its forks, unless the environment tunes the allocator."""
    global _asked
    if not any(os.environ.get(name) for name in _OWN) and _is_glibc():
        _mallopt(_MMAP_MAX, 0)
        _mallopt(_TRIM_THRESHOLD, IN_TRAINING)
        _asked = True


def keep_less_in_worker() -> None:
    """Bounds what a loader process keeps, if `keep_freed_memory` was asked for."""
    if _asked:
        _mallopt(_TRIM_THRESHOLD, IN_WORKER)


def _is_glibc() -> bool:
    with suppress(AttributeError, OSError, ValueError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def _mallopt(name: int, value: int) -> None:
    import ctypes

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(name, value)
