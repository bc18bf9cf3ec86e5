"""Kills tiny runs at random moments, goes on with them, and counts whether each end is as docs/faults.md promises.

    python benchmarks/kills.py --runs 2000           hours; --runs 20 takes some minutes

Odd runs have two loader workers, even ones two ranks. Each gets one signal, SIGKILL or SIGTERM, to the process that
was started, to one of its children, or to all of them (as schedulers do): half of them in the first two seconds, half
while a checkpoint is being written. Then nothing of it may be left after 5 s, and the same command with --resume must
end with the weights of the undisturbed run, bit for bit. Moments follow from --seed. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

STEPS, FIRST_SECONDS, LEAVE_SECONDS, LIMIT_SECONDS = 12, 2.0, 5.0, 300.0
SETTINGS = (
    "--recipe tiny --target pixels --image-size 32 --patch-size 8 --num-masked 6 --batch-size 6 --device cpu --quiet "
    f"--steps {STEPS} --save-every 2 --keep 9"
).split()
KINDS = {"ranks": ["--gpus", "2", "--workers", "0"], "workers": ["--workers", "2"]}


@dataclass(frozen=True)
class Kill:
    """One run's fate.

    Attributes:
        kind: `ranks` or `workers`.
        victim: `run`, the process that was started; `child`, one of its children or theirs; `all`.
        in_save: Whether it comes while a checkpoint is being written; else `seconds` after the start.
        seconds: From the start, or from the beginning of the save.
        pick: Chooses the child, in [0, 1).
    """

    number: int
    kind: str
    signal: int
    victim: str
    in_save: bool
    seconds: float
    pick: float


def drawn(number: int, seed: int) -> Kill:
    """Returns the fate of a run; it depends on nothing but its number and the seed."""
    draw = random.Random(f"{seed} {number}")
    in_save = draw.random() < 0.5
    return Kill(
        number=number,
        kind="workers" if number % 2 else "ranks",
        signal=draw.choice([signal.SIGKILL, signal.SIGTERM]),
        victim=draw.choice(["run", "child", "all"]),
        in_save=in_save,
        seconds=draw.uniform(0, 0.05 if in_save else FIRST_SECONDS),
        pick=draw.random(),
    )


def begun(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "beitcli", *words]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def below(pid: int) -> list[int]:
    """Lists the processes that a process has started, and those that they have."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in children.read_text().split()]
        except OSError:  # it has just ended
            continue
    return found + [each for child in found for each in below(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def hears(pid: int, number: int) -> bool:
    """Whether a process has come to handle, block or ignore a signal; Python itself takes some 50 ms until it can."""
    try:
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return True
    return any(int(lines[name], 16) >> (number - 1) & 1 for name in ("SigCgt", "SigBlk", "SigIgn"))


def strike(kill: Kill, run: Path, process: subprocess.Popen[str]) -> tuple[str, list[int]]:
    """Waits for the moment and sends the signal.

    Returns:
        What was struck: `run`, `child`, `all`, `unprepared` (before Python ran the program) or `finished`; and all
        processes of the run.
    """
    while kill.in_save and process.poll() is None and not list((run / "checkpoints").glob(".step-*.partial-*")):
        time.sleep(0.0005)
    time.sleep(kill.seconds)
    children = below(process.pid)
    if process.poll() is not None:
        return "finished", children
    victims = {"run": [process.pid], "all": [process.pid, *children]}.get(kill.victim)
    if victims is None:
        victims = [children[int(kill.pick * len(children))]] if children else [process.pid]
    struck = kill.victim if kill.victim != "child" or children else "run"
    if kill.signal == signal.SIGTERM and not all(hears(pid, kill.signal) for pid in victims):
        struck = "unprepared"
    for pid in victims:
        try:
            os.kill(pid, kill.signal)
        except ProcessLookupError:
            continue
    return struck, children


def promised(kill: Kill, struck: str) -> set[int]:
    """Returns the exit codes that are right."""
    if struck == "finished":
        return {0}
    if struck == "unprepared":
        return {0, -signal.SIGTERM, 75}
    if kill.signal == signal.SIGKILL:
        if struck != "child":
            return {-signal.SIGKILL}
        return {0} if kill.kind == "ranks" else {0, 3}  # started again; the worker is named
    if struck == "child" and kill.kind == "workers":
        return {0}  # workers leave signals to the run
    return {0, 75}  # 0 where the last step was done


def one(kill: Kill, data: Path, folder: Path, weights: dict[str, bytes]) -> tuple[str, str]:
    """Returns what was struck, and what is not as promised ("" if all is)."""
    run = folder / f"run-{kill.number}"
    words = ["pretrain", str(data), *SETTINGS, *KINDS[kill.kind], "--out", str(run)]
    process = begun(words)
    struck, children = strike(kill, run, process)
    try:
        said = process.communicate(timeout=LIMIT_SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return struck, f"it hangs for {LIMIT_SECONDS:g} s"
    finally:
        end = time.monotonic() + LEAVE_SECONDS
        while any(map(is_alive, children)) and time.monotonic() < end:
            time.sleep(0.02)
    if left := [pid for pid in children if is_alive(pid)]:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return struck, f"{len(left)} processes are left"
    if process.returncode not in promised(kill, struck):
        return struck, f"exit code {process.returncode}: {' '.join(said.split())[-300:]}"
    again = begun([*words, "--resume"])
    said = again.communicate(timeout=LIMIT_SECONDS)[1]
    if again.returncode:
        return struck, f"resumed, exit code {again.returncode}: {' '.join(said.split())[-300:]}"
    if last_weights(run) != weights[kill.kind]:
        return struck, "resumed, it ends with other weights"
    return struck, ""


def last_weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step-{STEPS:07d}" / "model.safetensors").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    counts: Counter[str] = Counter()
    broken = []
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "images"
        os.environ["BEIT_CACHE_DIR"] = str(folder / "cache")
        data.mkdir()
        for number in range(24):
            Image.new("RGB", (24, 24), (9 * number, 9, 9)).save(data / f"{number:02d}.png")
        weights = {}
        for kind, more in KINDS.items():
            assert begun(["pretrain", str(data), *SETTINGS, *more, "--out", str(folder / kind)]).wait() == 0
            weights[kind] = last_weights(folder / kind)
        for number in range(asked.first, asked.first + asked.runs):
            kill = drawn(number, asked.seed)
            struck, wrong = one(kill, data, folder, weights)
            when = "save" if kill.in_save else "start"
            counts[f"{kill.kind}, {signal.Signals(kill.signal).name}, {when}, {struck}"] += 1
            if wrong:
                broken.append({"number": number, "wrong": wrong})
                sys.stderr.write(f"run {number}: {kill}: {wrong}\n")
    report = {"runs": asked.runs, "seed": asked.seed, "as_promised": asked.runs - len(broken), "broken": broken}
    sys.stdout.write(json.dumps(report | {"struck": dict(sorted(counts.items()))}, indent=2) + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
