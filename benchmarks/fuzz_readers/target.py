"""What a fuzz target is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Mutation = Callable[[bytes, int], bytes]  # (content, seed) to content
Use = Callable[[bytes], None]


@dataclass(frozen=True)
class Place:
    """Where a target may write: `folder`, in memory, its own; `models`, runs and weights to start from, shared."""

    folder: Path
    models: Path


@dataclass(frozen=True)
class Prepared:
    """A reader, ready to be called.

    Attributes:
        use: Reads one input; raises BeitError where it refuses it.
        seeds: Inputs to start from.
        mutate: Mutation that keeps lengths and checksums right; used in half of the mutations.
        also: Errors that the reader's contract names besides BeitError.
    """

    use: Use
    seeds: list[bytes]
    mutate: Mutation | None = None
    also: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Target:
    """A reader of foreign bytes.

    Attributes:
        prepare: Imports what is needed, and returns the reader.
        reads: What it reads, for the report.
        longest: Bytes of an input.
    """

    name: str
    reads: str
    prepare: Callable[[Place], Prepared] = field(repr=False)
    longest: int = 16_384
