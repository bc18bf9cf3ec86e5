"""How does a pretraining grow with its images and its processes: time to the first step, memory, images a second?

    python benchmarks/growth.py --tokenizer RUN --rounds 3 --output benchmarks/results/growth.json

Each case is the whole command `beit pretrain SHARD --recipe tiny --gpus P`, watched from outside: the first line of its
metrics.jsonl ends the time to the first step, the lines after it give images a second. "first" opens the shard with an
empty cache folder and so lists it, "later" finds the list. Memory is the most that all its processes held at once, in
MB, with shared pages counted once (PSS), and that divided by the ranks. Linux only. The shard is drawn, 64 x 64 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import report, spread
from scaling import make_shard

BATCH, SIZE, POLL, POLL_MEMORY = 64, 64, 0.02, 1.0
Case = tuple[int, int]  # images, processes


def family(pid: int) -> list[int]:
    """PIDs of a process and all its descendants."""
    found = [pid]
    for each in found:
        try:
            tasks = os.listdir(f"/proc/{each}/task")
            found += [int(child) for task in tasks for child in _read(f"/proc/{each}/task/{task}/children").split()]
        except OSError:
            continue  # it has ended
    return found


def _read(path: str) -> str:
    return Path(path).read_text()


def held(pid: int) -> float:
    """MB of a process and its descendants, shared pages counted once."""
    total = 0.0
    for each in family(pid):
        try:
            lines = _read(f"/proc/{each}/smaps_rollup").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    return total


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines that have been written so far, those of training."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError:
        return []
    return [
        row for row in map(json.loads, (line for line in lines if line.endswith("\n"))) if "images_per_second" in row
    ]


def watched(case: Case, shard: Path, tokenizer: str, steps: int, folder: Path) -> dict[str, float]:
    """Runs one case; seconds to the first step, images a second, and MB."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    words = [sys.executable, "-m", "beitcli", "pretrain", str(shard), "--recipe", "tiny", "--tokenizer", tokenizer]
    words += ["--steps", str(steps), "--warmup-steps", "1", "--save-every", str(steps), "--log-every", "1"]
    words += ["--batch-size", str(BATCH), "--previews", "0", "--workers", "0", "--device", "cpu", "--quiet"]
    words += ["--precision", "fp32", "--cpu-matmul", "torch", "--gpus", str(case[1]), "--out", str(run)]
    begin, first, last, most, asked = time.perf_counter(), 0.0, 0.0, 0.0, 0.0
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            now = time.perf_counter()
            done = rows_of(run / "metrics.jsonl")
            if done and not first:
                first = now
            if len(done) >= steps and not last:
                last = now
            if now - asked > POLL_MEMORY:
                most, asked = max(most, held(process.pid)), now
            time.sleep(POLL)
    if process.returncode or not first or not last:
        raise SystemExit(f"{case} ended with {process.returncode}")
    rate = BATCH * (steps - 1) / (last - first)
    return {"seconds": first - begin, "images_per_second": rate, "mb": most, "mb_a_rank": most / case[1]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True, help="a tokenizer run of images of 32 pixels")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--of-many", type=int, default=10_000, help="images of the cases with several processes")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output")
    given = parser.parse_args()
    cases = [(count, 1) for count in given.counts]
    cases += [(given.of_many, each) for each in given.processes if (given.of_many, each) not in cases]
    taken: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    openings: dict[Case, list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["BEIT_CACHE_DIR"] = str(folder / "cache")
        shards = {count: make_shard(folder / f"{count}.tar", count, SIZE) for count, _ in cases}
        time.sleep(2.5)  # what has changed just now is not indexed
        for _ in range(given.rounds):
            for case in cases:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                openings[case].append(watched(case, shards[case[0]], given.tokenizer, 2, folder)["seconds"])
                taken[case].append(watched(case, shards[case[0]], given.tokenizer, given.steps, folder))
            tell(taken, openings, given.output)


def tell(taken: dict[Case, list[dict[str, float]]], openings: dict[Case, list[float]], output: str | None) -> None:
    results = [
        {
            "images": case[0],
            "processes": case[1],
            "first_seconds": spread(openings[case]),
            "later_seconds": spread([each["seconds"] for each in rows]),
            **{name: spread([each[name] for each in rows]) for name in ("images_per_second", "mb", "mb_a_rank")},
        }
        for case, rows in taken.items()
    ]
    report("How does a pretraining grow with images and processes?", {"batch": BATCH, "cases": results}, output)


if __name__ == "__main__":
    main()
