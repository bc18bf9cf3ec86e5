"""What a job tells while it runs. The engine never prints: a face (the command line, a notebook) shows these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something a person may want to see."""


@dataclass(frozen=True)
class Note(Event):
    """A fact in one line."""

    message: str


@dataclass(frozen=True)
class Warned(Event):
    """Something to look at, in one line; the job goes on."""

    message: str


@dataclass(frozen=True)
class Planned(Event):
    """What a training job is about to do: rows of (what, value), in order."""

    title: str
    rows: dict[str, str]


@dataclass(frozen=True)
class Tabulated(Event):
    """Rows of figures, a value a column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True)
class Progress(Event):
    """How far a phase is, of 0 where nobody knows the whole; `metrics` are the latest figures."""

    phase: str
    done: int
    total: int
    unit: str = "step"
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is on disk.

    Attributes:
        stall: Seconds that training waited for it.
        seconds: That writing it took, beside the training.
    """

    path: str
    step: int
    stall: float = 0.0
    seconds: float = 0.0


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """For callers who want only the report."""


def warn(warnings: Iterable[str], on_event: OnEvent) -> None:
    """Says what opening a checkpoint found: newer damaged ones, what had to be assumed."""
    for warning in warnings:
        on_event(Warned(warning))


def downloads(on_event: OnEvent) -> Callable[[str, int, int], None]:
    """What a download reports to: (what, bytes done, bytes in all)."""
    return lambda what, done, total: on_event(Progress(what, done, total, "byte"))


def openings(on_event: OnEvent) -> Callable[[str, int, int, str], None]:
    """What opening DATA reports to: (what, how many, of how many, unit); without a unit, a remark."""
    return lambda what, done, total, unit: on_event(Progress(what, done, total, unit) if unit else Note(what))
