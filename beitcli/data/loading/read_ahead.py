"""How far loader workers read ahead: within 2 GB, and within the limit on open files.

Each batch comes from a worker as a file a tensor. Beyond the limit Python's sharing of files between processes waits
for ever, and says nothing.
"""

from __future__ import annotations

import math
import os

from beitcli.errors import UsageError

_BYTES = 2e9
_TENSORS = 4  # of a batch: images, the tokenizer's images, masks, labels
_PIPES = 4  # of a worker
_SPARE = 16  # shards, checkpoints, logs


def require_open_files(workers: int, prefetch: int) -> None:
    """Raises the limit of this process as far as it may, if it is too low.

    Args:
        prefetch: Batches, or pieces of them, that each worker holds ready.

    Raises:
        UsageError: It stays too low for so many workers.
    """
    try:
        import resource  # not on Windows

        used = len(os.listdir("/dev/fd"))
    except (ImportError, OSError):
        return
    needed = used + _SPARE + workers * (_PIPES + _TENSORS * prefetch)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    raise UsageError(
        f"{workers} loader processes need {needed:,} open files, and the limit is {hard:,}.",
        "Raise it (ulimit -n 4096), or give fewer --workers; 0 needs none.",
    )


def read_ahead(batch_size: int, bytes_per_image: int, workers: int) -> tuple[int, int]:
    """Returns (prefetch factor of each worker, pieces per batch), so that prefetched data stays within 2 GB.

    Args:
        bytes_per_image: 0 if unknown.
    """
    batch_bytes = batch_size * bytes_per_image
    if not batch_bytes:
        return 2, 1
    affordable = int(_BYTES / (batch_bytes * workers))
    if affordable >= 2:
        return min(4, affordable), 1
    return 2, min(batch_size, math.ceil(2 * workers * batch_bytes / _BYTES))
