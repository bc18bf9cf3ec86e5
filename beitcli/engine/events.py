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
class Progress(Event):
    """How far a phase is; `metrics` are the latest figures."""

    phase: str
    done: int
    total: int
    unit: str = "step"
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is on disk."""

    path: str
    step: int


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """For callers who want only the report."""


def warn_of_damage(damaged: Iterable[str], on_event: OnEvent) -> None:
    """Says which newer checkpoints were passed over."""
    for checkpoint in damaged:
        on_event(Warned(f"Damaged checkpoint passed over: {checkpoint}."))
