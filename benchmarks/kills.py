"""Kills tiny runs at random moments, resumes them, and counts whether each end is as docs/faults.md promises.

    python benchmarks/kills.py --kills 2000 --out kills.json    hours; it goes on where it was stopped

A run is killed, resumed, killed again, eight times, and then left to its end, whose weights must equal those of the
undisturbed run bit for bit. Of 20 runs 14 have two loader workers, five are two tasks as `srun` or `torchrun` starts
them, one is `--gpus 2`. A kill is SIGKILL or SIGTERM, to the process that was started, to one of its children or to
all: half of them in the first two seconds of processor time, half while a checkpoint is being written; some SIGTERMs
are followed by a SIGKILL to all. A fifth of the first kind begin with a new Python, the others as forks of this
process, which spares the imports. Where processes wait for cores, the 5 s until all of a run is gone are longer in
proportion. All draws follow from --seed and the run's number. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}

from kill_lives.lineage import SAME_AS, Place, lineage, undisturbed  # noqa: E402
from kill_lives.processes import Reaper, adopt_orphans  # noqa: E402
from measure import hardware  # noqa: E402
from PIL import Image  # noqa: E402

KILLS_A_RUN = 8
# Of 20 runs. A rank of `--gpus 2` starts Python again each time, which costs more than all the rest.
TURN = (
    "workers",
    "tasks",
    "workers",
    "ranks",
    "workers",
    "workers",
    "tasks",
    "workers",
    "workers",
    "workers",
    *("tasks", "workers", "workers") * 3,
    "workers",
)


def import_all(place: Place, reaper: Reaper) -> None:
    """Imports what a run imports, so that a fork need not."""
    listed = place.folder / "modules"
    pid = os.fork()
    if pid == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            from beitcli.cli.app import main

            main([*place.words("workers"), "--steps", "2"])
            importlib.import_module("beitcli.runtime.distributed.launch")
            listed.write_text("\n".join(sys.modules))
        finally:
            os._exit(0)
    reaper.wait([pid], 300)
    for name in listed.read_text().split("\n"):
        try:
            if name != "__mp_main__":
                importlib.import_module(name)
        except Exception:  # a name that only the importing module can give
            continue
    gc.freeze()


def fresh(seed: int) -> dict[str, Any]:
    return {
        "seed": seed, "runs": 0, "kills": 0, "equal_ends": 0, "broken": [], "struck": {},
        "undisturbed": {},
        "processor_seconds": 0.0, "seconds": 0.0,
    }  # fmt: skip


def add(report: dict[str, Any], number: int, kind: str, outcome: Any) -> None:
    report["runs"] += 1
    report["kills"] += outcome.kills
    report["equal_ends"] += outcome.equal
    report["struck"] = dict(sorted((Counter(report["struck"]) + outcome.counts).items()))
    if outcome.wrong:
        report["broken"].append({"run": number, "kind": kind, "wrong": outcome.wrong})


def write(report: dict[str, Any], out: Path | None) -> None:
    report["processor_seconds_a_kill"] = round(report["processor_seconds"] / max(1, report["kills"]), 2)
    text = json.dumps(report | {"hardware": hardware()}, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    beside = out.with_suffix(".partial")
    beside.write_text(text)
    beside.replace(out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many in all, those of before in --out included")
    parser.add_argument("--out", type=Path, help="the report, rewritten after each run; else stdout at the end")
    parser.add_argument("--only", type=int, help="number of a run, to repeat it")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    warnings.simplefilter("ignore", DeprecationWarning)
    adopt_orphans()
    folder, reaper = Path(tempfile.mkdtemp(prefix="beit-kills-")), Reaper()
    owner = os.getpid()
    try:
        os.environ["BEIT_CACHE_DIR"] = str(folder / "cache")
        place = Place(folder / "images", folder)
        place.data.mkdir()
        for number in range(24):
            Image.new("RGB", (24, 24), (9 * number, 9, 9)).save(place.data / f"{number:02d}.png")
        place.clear()
        import_all(place, reaper)
        report = fresh(asked.seed)
        if asked.out is not None and asked.out.exists() and asked.only is None:
            report |= json.loads(asked.out.read_text())
        for kind in {*SAME_AS.values()} - {*report["undisturbed"]}:
            report["undisturbed"][kind] = undisturbed(kind, place, reaper)
        while report["kills"] < asked.kills or asked.only is not None:
            number = report["runs"] if asked.only is None else asked.only
            kind = TURN[number % len(TURN)]
            begun, used = time.monotonic(), reaper.seconds
            draw = random.Random(f"{report['seed']} {number}")
            outcome = lineage(kind, KILLS_A_RUN, draw, place, reaper, report["undisturbed"][SAME_AS[kind]])
            report["processor_seconds"] = round(report["processor_seconds"] + reaper.seconds - used, 2)
            report["seconds"] = round(report["seconds"] + time.monotonic() - begun, 1)
            add(report, number, kind, outcome)
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} run {number} ({kind}): {dict(outcome.counts)}")
            sys.stderr.write(f" {reaper.seconds - used:.1f} s {outcome.wrong or 'as promised'}\n")
            if asked.out is not None or asked.only is not None:
                write(report, asked.out if asked.only is None else None)
            if asked.only is not None:
                break
        write(report, asked.out)
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(report["broken"]))


if __name__ == "__main__":
    main()
