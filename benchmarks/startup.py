"""How long do `beit --help`, `--version` and each command's help take, and how much memory?

Whole processes, `python -m beitcli`, in an order that turns with the round; beside them `python -c pass`, below which
nothing can come.

    python benchmarks/startup.py --rounds 11 -o benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from measure import report, spread

COMMANDS = (
    "pretrain", "finetune", "train-tokenizer", "eval", "predict", "tokenize", "mask-preview", "attn-map", "inspect",
    "export",
)  # fmt: skip


def run(words: list[str]) -> tuple[float, float, int]:
    """(seconds, processor seconds, peak bytes) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    lines = {"python -c pass": ["-c", "pass"]}
    for words in (["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
        lines["beit " + " ".join(words)] = ["-m", "beitcli", *words]
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    worked: dict[str, list[float]] = {name: [] for name in lines}
    peaks: dict[str, list[float]] = {name: [] for name in lines}
    names = list(lines)
    for number in range(-1, args.rounds):  # the first one reads the files from disk
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken, cpu, peak = run(lines[name])
            if number >= 0:
                seconds[name].append(taken)
                worked[name].append(cpu)
                peaks[name].append(peak)
    results = {
        name: {
            "seconds": spread(seconds[name]),
            "cpu_seconds": spread(worked[name]),
            "peak_bytes": spread(peaks[name]),
        }
        for name in names
    }
    for name, its in results.items():
        its_time, peak = its["seconds"], its["peak_bytes"]["median"] / 2**20
        sys.stderr.write(
            f"{name}: {its_time['median']:.3f} s ({its_time['low']:.3f}-{its_time['high']:.3f}), "
            f"processor {its['cpu_seconds']['median']:.3f} s, {peak:.0f} MiB\n"
        )
    report("time and memory of the help and the version", results, args.output)


if __name__ == "__main__":
    main()
