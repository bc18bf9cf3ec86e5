"""One kill: what is drawn, the moment, the signal, and the exit codes that docs/faults.md promises."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kill_lives.processes import Clock, Reaper, below, hears, is_alive

FIRST_SECONDS, SAVE_SECONDS, GRACE_SECONDS, WAIT_SECONDS = 2.0, 0.06, 0.3, 240.0
RESTARTS = 3  # of the launcher, by default


@dataclass(frozen=True)
class Kill:
    """What is drawn.

    Attributes:
        victim: `run`, the process that was started (of two tasks the first); `child`, one that it has started, or
            theirs (of two tasks the second); `all`, as schedulers do.
        in_save: Whether it comes while a checkpoint is being written, `seconds` after its folder appears; else
            `seconds` of the run's own processor time after its start, or after the kill before.
        pick: Chooses the child, in [0, 1).
    """

    signal: int
    victim: str
    in_save: bool
    seconds: float
    pick: float


def draw_kill(draw: random.Random, *, must_end: bool) -> Kill:
    """Args: must_end: Only kills that end the run."""
    in_save = draw.random() < 0.5
    return Kill(
        signal=draw.choice([signal.SIGKILL, signal.SIGTERM]),
        victim=draw.choice(["run", "all"] if must_end else ["run", "child", "all"]),
        in_save=in_save,
        seconds=draw.uniform(0, SAVE_SECONDS if in_save else FIRST_SECONDS),
        pick=draw.random(),
    )


@dataclass(frozen=True)
class Struck:
    """What was done.

    Attributes:
        what: `run`, `child`, `all`; `unprepared`: SIGTERM before Python ran the program; `finished`: nothing, as the
            run had ended.
        in_save: Whether a checkpoint was being written at that moment.
        codes: The exit codes that are right, of each process that was started.
        goes_on: Whether the run is to go on.
    """

    what: str
    in_save: bool
    codes: tuple[frozenset[int], ...]
    goes_on: bool = False


def unfinished(run: Path) -> frozenset[str]:
    """Names of unfinished checkpoints."""
    try:
        return frozenset(entry.name for entry in os.scandir(run / "checkpoints") if ".partial-" in entry.name)
    except OSError:
        return frozenset()


def await_moment(kill: Kill, roots: list[int], run: Path, left: frozenset[str], reaper: Reaper) -> None:
    """Returns at the kill's moment, or when the run has ended, or after four minutes.

    Args:
        left: What earlier lives left unfinished.
    """
    end = time.monotonic() + WAIT_SECONDS

    def goes_on() -> bool:
        reaper.reap()
        return any(pid not in reaper.codes for pid in roots) and time.monotonic() < end

    if kill.in_save:
        while goes_on() and not unfinished(run) - left:
            time.sleep(0.001)
        time.sleep(kill.seconds)
        return
    clock = Clock(roots)
    while goes_on() and clock.read() < kill.seconds:
        time.sleep(0.004)


def strike(kind: str, kill: Kill, roots: list[int], run: Path, left: frozenset[str], reaper: Reaper) -> Struck:
    """Waits for the moment and sends the signal."""
    await_moment(kill, roots, run, left, reaper)
    reaper.reap()
    if any(pid in reaper.codes for pid in roots):
        return Struck("finished", False, (frozenset({0}),) * len(roots))
    children = [pid for root in roots for pid in below(root)]
    what = kill.victim
    if kind == "tasks":
        victims = {"run": roots[:1], "child": roots[1:], "all": roots}[what]
    elif what == "child" and children:
        victims = [children[int(kill.pick * len(children))]]
    else:
        what = "all" if what == "all" else "run"
        victims = [*roots, *children] if what == "all" else roots
    if kill.signal == signal.SIGTERM and not all(hears(pid, kill.signal) for pid in victims):
        what = "unprepared"
    in_save = bool(unfinished(run) - left)
    send(kill.signal, victims)
    return _promised(kind, kill, what, in_save)


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _promised(kind: str, kill: Kill, what: str, in_save: bool) -> Struck:
    dead, stopped = frozenset({-signal.SIGKILL}), frozenset({0, 75})  # 0 where the last step was done
    if what == "unprepared":
        code = stopped | {-signal.SIGTERM}
        return Struck(what, in_save, (code | {6},) * 2 if kind == "tasks" else (code,))
    if kind == "tasks":
        alone = frozenset({0, 6})  # nobody starts it again here; 0 where it had just ended
        if kill.signal == signal.SIGKILL:
            return Struck(
                what, in_save, {"run": (dead, alone), "child": (alone, dead), "all": (dead | {0}, dead | {0})}[what]
            )
        if kill.in_save or what == "all":
            return Struck(what, in_save, (stopped, stopped))
        early = stopped | {6}  # of the one that waits for the other, which was stopped before they met
        return Struck(what, in_save, (stopped, early) if what == "run" else (early, stopped))
    if what != "child":
        return Struck(what, in_save, (dead if kill.signal == signal.SIGKILL else stopped,))
    if kind == "ranks":  # killed, it is started again
        killed = kill.signal == signal.SIGKILL
        return Struck(what, in_save, (frozenset({0}) if killed else stopped,), goes_on=killed)
    # A killed worker is named; to other signals a worker does not listen.
    return Struck(what, in_save, (frozenset({0, 3} if kill.signal == signal.SIGKILL else {0}),), kill.signal != 9)


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]
