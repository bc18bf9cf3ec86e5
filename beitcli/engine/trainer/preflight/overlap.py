"""Finds evaluation images that are training images too, byte for byte, within a second or so.

Some evaluation images are hashed; a training image is only read if its size is that of one of them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from beitcli.data.sources.base import Source
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.engine.trainer.preflight.looked_at import SECONDS, is_drawn, some_indices
from beitcli.errors import BadImage
from beitcli.runtime.metric_text import counted

_MOST_MEASURED = 64
_MOST_READ = 512  # training images whose size is not known without reading them
_TIME_EVERY = 256  # images between looks at the clock


@dataclass(frozen=True)
class Overlap:
    """Evaluation images that are training images too.

    Attributes:
        looked_at: Number of evaluation images that were compared.
        compared: Number of training images that they were compared with.
        pairs: (evaluation path, training path), one for each evaluation image.
    """

    looked_at: int
    compared: int
    pairs: tuple[tuple[str, str], ...]


def find_overlap(training: Source, measured: Source, seconds: float = SECONDS) -> Overlap:
    """Compares some evaluation images with training images, spread over the data.

    Args:
        seconds: After which no further image is read, of either.
    """
    by_size: dict[int, dict[bytes, list[str]]] = {}
    looked_at, deadline = 0, time.monotonic() + seconds
    for index in some_indices(measured, _MOST_MEASURED):
        if time.monotonic() > deadline:
            break
        try:
            data = measured.read(index)
        except BadImage:
            continue
        looked_at += 1
        by_size.setdefault(len(data), {}).setdefault(_digest(data), []).append(measured.path(index))
    found: dict[str, str] = {}
    compared, deadline = 0, time.monotonic() + seconds
    for index in _spread(training) if by_size else ():
        if compared % _TIME_EVERY == 0 and time.monotonic() > deadline:
            break
        compared += 1
        size = training.stored_bytes(index)
        if size is None or size in by_size:
            if time.monotonic() > deadline:  # images of one size are all read
                compared -= 1
                break
            try:
                data = training.read(index)
            except BadImage:
                continue
            for path in by_size.get(len(data), {}).get(_digest(data), ()):
                found.setdefault(path, training.path(index))
    return Overlap(looked_at, compared, tuple(found.items()))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _spread(source: Source) -> Iterator[int]:
    """Yields all indices, spread over the source from the first on; few, in order, if images must be read for it."""
    images = len(source)
    if not images:
        return
    if source.stored_bytes(0) is None:
        yield from some_indices(source, _MOST_READ)
        return
    stride = max(1, round(images * 0.618))  # the golden section
    while math.gcd(stride, images) > 1:
        stride += 1
    for place in range(images):
        yield place * stride % images


def overlap_findings(training: Source, measured: Source) -> Iterator[Finding]:
    """Yields whether evaluation images are training images too."""
    if is_drawn(training) or is_drawn(measured):
        return
    overlap = find_overlap(training, measured)
    if not overlap.pairs:
        return
    here, there = overlap.pairs[0]
    such = f"'{here}'" if here == there else f"'{here}', which is '{there}'"
    yield Finding(
        "overlap",
        "warning",
        f"{len(overlap.pairs):,} of {counted(overlap.looked_at, 'image')} to measure on are among "
        f"{counted(overlap.compared, 'training image')} too, byte for byte, such as {such}: metrics will be too good.",
        "`beit doctor` lists all of them.",
    )
