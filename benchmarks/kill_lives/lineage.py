"""A lineage: one run folder, whose run is killed, resumed, killed again, and at last left to its end.

After each kill: the exit code, no traceback, no process left, a whole newest checkpoint, nothing unfinished beside it
where the program could clear up. Then the way on is the one that the program itself named, or `--resume` of the first
command where it was killed without a word. At the end the weights equal those of the undisturbed run.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from beitcli.errors import BeitError
from beitcli.runtime.storage.checkpoint import damage, newest_checkpoint, step_folders
from beitcli.runtime.storage.hashing import sha256_of
from kill_lives.processes import Reaper, below, start
from kill_lives.strikes import GRACE_SECONDS, RESTARTS, Struck, draw_kill, living, send, strike, unfinished

LEAVE_SECONDS, LIMIT_SECONDS, STEPS = 5.0, 300.0, 40
SETTINGS = (
    "--recipe tiny --target pixels --image-size 32 --patch-size 8 --num-masked 6 --batch-size 6 --micro-batch 6 "
    f"--device cpu --quiet --steps {STEPS} --save-every 4 --keep 3"
).split()
KINDS = {
    "workers": ["--workers", "2"],
    "tasks": ["--workers", "0", "--process-timeout", "60"],
    "ranks": ["--workers", "0", "--gpus", "2"],
}
SAME_AS = {"workers": "workers", "tasks": "tasks", "ranks": "tasks"}  # whose undisturbed run has the same weights
COLD = {"workers": 0.2, "tasks": 0.05, "ranks": 0.0}  # share of lives that begin with a new Python; ranks always do
_WAY_ON = re.compile(r"(?:Go on|Go on from the last checkpoint) with: beit (.*)")


@dataclass
class Outcome:
    """What a lineage showed.

    Attributes:
        counts: Kills by kind, signal, moment and what was struck.
        wrong: What was not as promised, with the kills before it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    equal: bool = False
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where lineages happen: `data`, images; `folder`, for runs, temporary files and what was said."""

    data: Path
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def words(self, kind: str) -> list[str]:
        return ["pretrain", str(self.data), *SETTINGS, *KINDS[kind], "--out", str(self.run)]

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def said(self, number: int) -> str:
        path = self.folder / f"said-{number}"
        return path.read_text(errors="replace") if path.exists() else ""


def begin(kind: str, words: list[str], place: Place, *, cold: bool = False) -> list[int]:
    """Starts a life: one process, or the two tasks that a scheduler would start."""
    environment = {"TMPDIR": str(place.temporary), "COLUMNS": "4000"}
    if kind != "tasks":
        return [start(words, place.folder / "said-0", environment, cold=cold)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = environment | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = (meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))
    return [start(words, place.folder / f"said-{n}", each, cold=cold) for n, each in enumerate(ranks)]


def last_weights(run: Path) -> str:
    """Returns the SHA-256 of the weights at the end of a run."""
    return sha256_of(run / "checkpoints" / f"step-{STEPS:07d}" / "model.safetensors")


def undisturbed(kind: str, place: Place, reaper: Reaper) -> str:
    """The weights of the run that nothing kills."""
    place.clear()
    pids = begin(kind, place.words(kind), place)
    if not reaper.wait(pids, LIMIT_SECONDS) or any(reaper.codes[pid] for pid in pids):
        raise RuntimeError(f"the undisturbed run of {kind} ends in {place.said(0)}")
    return last_weights(place.run)


def lineage(kind: str, kills: int, draw: random.Random, place: Place, reaper: Reaper, weights: str) -> Outcome:
    """Lives through `kills` kills at least, and to the end."""
    place.clear()
    outcome = Outcome()
    words = place.words(kind)
    while outcome.kills < kills and not outcome.wrong:
        words = _life(kind, kills, words, draw, place, reaper, outcome)
        if not words:  # it came to its end before the last kills
            break
    if outcome.wrong:
        return outcome
    pids = begin(kind, words or [*place.words(kind), "--resume"], place)
    _await_end(pids, (frozenset({0}),) * len(pids), place, reaper, outcome)
    if not outcome.wrong:
        outcome.equal = last_weights(place.run) == weights
        if not outcome.equal:
            outcome.wrong.append("it ends with other weights")
        if left := sorted(path.name for path in place.run.rglob(".*") if path.name not in (".lock", ".pictures.jsonl")):
            outcome.wrong.append(f"left at the end: {left}")
    return outcome


def _life(
    kind: str, kills: int, words: list[str], draw: random.Random, place: Place, reaper: Reaper, outcome: Outcome
) -> list[str]:
    """One process's life; returns the command that goes on, empty where the run has ended."""
    before = unfinished(place.run)
    pids = begin(kind, words, place, cold=draw.random() < COLD[kind])
    struck, number, restarts = None, signal.SIGKILL, 0
    while struck is None or (struck.goes_on and outcome.kills < kills):
        kill = draw_kill(draw, must_end=restarts == RESTARTS)
        now = strike(kind, kill, pids, place.run, before, reaper)
        when = "save" if now.in_save else "after a save" if kill.in_save else "start"
        outcome.counts[f"{kind}, {signal.Signals(kill.signal).name}, {when}, {now.what}"] += 1
        if now.what == "finished":
            struck = struck or now
            break
        struck, number = now, signal.Signals(kill.signal)
        outcome.kills += 1
        if struck.goes_on and kind == "ranks":
            restarts += 1
            before |= unfinished(place.run)  # the one that starts again may be stopped before it opens the run
    if number == signal.SIGTERM and not struck.goes_on and draw.random() < 0.25:
        struck = _after_grace(kind, struck, pids, draw, place.run, before, reaper, outcome)
    _await_end(pids, struck.codes, place, reaper, outcome)
    if outcome.wrong:
        outcome.wrong[-1] += f" [{number.name}, {struck}]"
        return []
    codes = [reaper.codes[pid] for pid in pids]
    _examine(place, outcome, before, cleared=75 in codes and -signal.SIGKILL not in codes)
    if codes == [0] * len(codes):
        return []
    told = _WAY_ON.search(place.said(0)) if 75 in codes else None
    if told:
        return [*shlex.split(told[1].strip().removesuffix(".")), "--quiet"]
    begun = (place.run / "config.toml").exists()
    return [*place.words(kind), *(["--resume"] if begun or 75 not in codes else [])]


def _after_grace(
    kind: str,
    struck: Struck,
    pids: list[int],
    draw: random.Random,
    run: Path,
    before: frozenset[str],
    reaper: Reaper,
    outcome: Outcome,
) -> Struck:
    """SIGKILL to all, a moment after they were asked to stop, as a scheduler's patience ends."""
    time.sleep(draw.uniform(0, GRACE_SECONDS))
    reaper.reap()
    left = [pid for pid in pids if pid not in reaper.codes]
    when = "save" if unfinished(run) - before else "stop"
    send(signal.SIGKILL, [*left, *(each for pid in left for each in below(pid))])
    outcome.counts[f"{kind}, SIGKILL after SIGTERM, {when}, {'all' if left else 'finished'}"] += 1
    outcome.kills += bool(left)
    return Struck("all", when == "save", tuple(each | {-signal.SIGKILL, 6} for each in struck.codes))


def _await_end(
    pids: list[int], codes: tuple[frozenset[int], ...], place: Place, reaper: Reaper, outcome: Outcome
) -> None:
    """Waits for the end of a life; whatever of it is left is ended here."""
    if not reaper.wait(pids, LIMIT_SECONDS):
        outcome.wrong.append(f"still running after {LIMIT_SECONDS:g} s")
    else:
        found = [reaper.codes[pid] for pid in pids]
        if any(code not in right for code, right in zip(found, codes, strict=True)):
            outcome.wrong.append(f"exit codes {found}, not {[sorted(each) for each in codes]}")
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others compete for the cores
    end = time.monotonic() + LEAVE_SECONDS * crowd
    while (left := living(below(os.getpid()))) and time.monotonic() < end:
        reaper.reap()
        time.sleep(0.01)
    if left:
        outcome.wrong.append(f"{len(left)} processes are left after {LEAVE_SECONDS:g} s")
        send(signal.SIGKILL, left)
    time.sleep(0.01)
    reaper.reap()
    said = [place.said(number) for number in range(len(pids))]
    if any("Traceback" in each or "This is a bug" in each for each in said):
        outcome.wrong.append("a traceback")
    if outcome.wrong:
        outcome.wrong[-1] += " | " + " | ".join(" ".join(each.split())[-600:] for each in said)


def _examine(place: Place, outcome: Outcome, before: frozenset[str], *, cleared: bool) -> None:
    """The run folder after a kill.

    Args:
        before: What earlier lives left unfinished; a life that is stopped before it opens the run leaves it.
        cleared: Whether the program ended by itself, and so had to remove what was unfinished.
    """
    folder = place.run / "checkpoints"
    try:
        newest = newest_checkpoint(place.run)
    except BeitError as error:
        outcome.wrong.append(f"no whole checkpoint: {error}")
        return
    if wrong := [f"{path.name}: {damage(path)}" for path in step_folders(folder) if damage(path)]:
        outcome.wrong.append(f"damaged: {wrong}")
    if (folder / "latest").exists() and not (folder / (folder / "latest").read_text().strip()).is_dir():
        outcome.wrong.append("`latest` names no checkpoint")
    if cleared:
        left = sorted({*(unfinished(place.run) - before), *(f"tmp/{path.name}" for path in place.temporary.iterdir())})
        if left:
            outcome.wrong.append(f"left behind: {left}")
        if newest is not None and (folder / "latest").read_text().strip() != newest.path.name:
            outcome.wrong.append("`latest` does not name the newest checkpoint")
    else:
        for path in place.temporary.iterdir():  # of a killed launcher
            shutil.rmtree(path, ignore_errors=True)
