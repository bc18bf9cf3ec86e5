"""Events of a running job. The engine never prints; its caller (command line, notebook) shows the events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beitcli.pictures.canvas import Panel


@dataclass(frozen=True)
class Event:
    """Base class of events."""


@dataclass(frozen=True)
class Note(Event):
    """An informational message of one line.

    Attributes:
        once: Whether it says nothing new the second time in a command, as of DATA that is opened again.
    """

    message: str
    once: bool = False


@dataclass(frozen=True)
class Written(Note):
    """A note of a file that was written before there are results; to be shown after these."""


@dataclass(frozen=True)
class Warned(Event):
    """A warning of one line; the job continues."""

    message: str


@dataclass(frozen=True)
class Planned(Event):
    """The plan of a training job: name -> value, in order."""

    title: str
    rows: dict[str, str]


@dataclass(frozen=True)
class Tabulated(Event):
    """A table of metrics."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True)
class Progress(Event):
    """Progress of a phase: `done` of `total`, which is 0 if unknown, with the latest `metrics`.

    Attributes:
        classes: Number of classes that are told apart, by which some metrics say nothing; 0 if unknown or none.
        on_training: Whether the images measured (metrics `held_out_...`) are training images, too few to hold any out.
    """

    phase: str
    done: int
    total: int
    unit: str = "step"
    metrics: dict[str, float] = field(default_factory=dict)
    classes: int = 0
    on_training: bool = False


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was written.

    Attributes:
        stall: Seconds that training waited for it.
        seconds: Duration of the write, concurrent with training.
    """

    path: str
    step: int
    stall: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Drawn(Event):
    """Pictures of one shape to show side by side where that can be done: of `--preview`.

    Attributes:
        legend: Lines that hold for the pictures of all images, to be shown once.
    """

    panels: Sequence[Panel]
    legend: Sequence[str] = ()


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Event handler that discards all events."""


def warn(warnings: Iterable[str], on_event: OnEvent) -> None:
    """Emits the warnings from opening a checkpoint: newer ones that are damaged, assumptions made."""
    for warning in warnings:
        on_event(Warned(warning))


def downloads(on_event: OnEvent) -> Callable[[str, int, int], None]:
    """Returns a progress callback for downloads: (name, bytes done, total bytes)."""
    return lambda what, done, total: on_event(Progress(what, done, total, "byte"))


def openings(on_event: OnEvent) -> Callable[[str, int, int, str], None]:
    """Returns a progress callback for opening DATA: (name, done, total, unit); without a unit, name is a note.

    What is opened several times in a command is told of once.
    """

    def told(what: str, done: int, total: int, unit: str) -> None:
        on_event(Progress(what, done, total, unit) if unit else Note(what, once=True))

    return told
