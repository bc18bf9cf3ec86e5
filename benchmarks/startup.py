"""How much processor time and memory does a command take that has little to do?

Whole processes, `python -m beitcli`, in an order that turns with the round; beside them `python -c pass`, below which
nothing can come. `--before` runs each beside the program of another checkout, in the same rounds; `--pretrained` and
`--classifier` name runs for the commands that compute with a model, on eight photographs that are drawn here.

    python benchmarks/startup.py --rounds 7 --before ../former --classifier runs/classifier --pretrained runs/mine \
        -o benchmarks/results/startup.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import report

PROGRAM = Path(__file__).resolve().parents[1]
HELP = ("pretrain", "finetune", "eval", "mask-preview", "runs")


def cases(photos: Path, pretrained: str | None, classifier: str | None) -> dict[str, tuple[list[str], int]]:
    """Name to command line and exit code."""
    first, every = str(photos / "0.jpg"), str(photos)
    found: dict[str, tuple[list[str], int]] = {
        "--help": (["--help"], 0),
        "--version": (["--version"], 0),
        "no such command": (["pretrian"], 2),
        **{f"{name} --help": ([name, "--help"], 0) for name in HELP},
        "wrong option": (["pretrain", "sample", "--num-maskd", "3"], 2),
        "missing model": (["predict", "no/such/run", first], 4),
        "recipes": (["recipes"], 0),
        "cache list": (["cache", "list"], 0),
        "runs": (["runs", str(Path(pretrained).parent) if pretrained else "."], 0 if pretrained else 3),
        "mask-preview": (["mask-preview", first], 0),
        "mask-preview --stats": (["mask-preview", "--stats", "20"], 0),
    }
    if pretrained:
        found["inspect"] = (["inspect", pretrained], 0)
        found["attn-map"] = (["attn-map", first, "--model", pretrained], 0)
    if classifier:
        found["predict"] = (["predict", classifier, every, "--workers", "0"], 0)
    return found


def draw_photos(folder: Path, number: int = 8) -> None:
    import numpy as np
    from PIL import Image

    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")


def run(words: list[str], program: Path | None = None, expected: int = 0) -> tuple[float, float, int]:
    """(seconds, processor seconds, peak bytes) of a process."""
    environ = os.environ | ({"PYTHONPATH": str(program)} if program else {})
    start = time.perf_counter()
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(  # elsewhere, as `-m` takes the program of the working folder first
        [sys.executable, *words], stdout=nowhere, stderr=nowhere, env=environ, cwd=tempfile.gettempdir()
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise SystemExit(f"{words} of {program} ended with {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="checkout of another version")
    parser.add_argument("--pretrained", type=os.path.abspath, help="run of pretrain")
    parser.add_argument("--classifier", type=os.path.abspath, help="run of finetune")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    programs = {"now": PROGRAM} | ({"before": args.before.resolve()} if args.before else {})
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder))
        chosen = cases(Path(folder), args.pretrained, args.classifier)
        lines = {("python -c pass", "now"): (["-c", "pass"], None, 0)} | {
            (name, version): (["-m", "beitcli", *words], program, code)
            for name, (words, code) in chosen.items()
            for version, program in programs.items()
        }
        taken: dict[tuple[str, str], list[tuple[float, float, int]]] = {each: [] for each in lines}
        names = list(lines)
        for program in programs.values():
            run(["-m", "beitcli", "--help"], program, 0)  # reads and compiles what all have in common
        for number in range(args.rounds):
            turn = number % len(names)
            for each in names[turn:] + names[:turn]:
                taken[each].append(run(*lines[each]))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for (name, version), measured in taken.items():
        seconds, cpu, peaks = zip(*measured, strict=True)
        results.setdefault(name, {})[version] = {
            "cpu_seconds_min": min(cpu),
            "cpu_seconds_median": statistics.median(cpu),
            "seconds_median": statistics.median(seconds),
            "peak_bytes_median": statistics.median(peaks),
            "n": len(measured),
        }
        sys.stderr.write(f"{name}, {version}: processor {min(cpu):.3f} s, median {statistics.median(cpu):.3f} s\n")
    report("processor time and memory of commands with little to do", results, args.output)


if __name__ == "__main__":
    main()
