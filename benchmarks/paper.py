"""Do the paper's claims hold in miniature? Runs the cells of its tables that are missing, and writes the tables.

    python benchmarks/paper.py --data DIR --segmentation DIR [--photos DIR] [--budget small|gpu] [--only TABLE]
        [--seeds N] [--jobs N] [--match WORD]

--data holds a labelled data set as tar shards, train-*.tar and val-*.tar; --segmentation train/ and val/, each with
images/ and masks/ of CamVid's 11 classes. Each cell is one command with a result file below `results/paper/`; cells
that have one of the same command are not run again, so the work can be stopped (Ctrl-C) and gone on with at any moment.
Whole seeds are completed first, and what tables share runs once. Every command has one thread; --jobs, one a core
unless given, runs several at once. A cell that fails takes along only those that need it; the exit code is then 1, and
the failures are listed at the end. The tables and a summary of all claims are written between the marks of
docs/results.md, from what is there; with --photos the pictures of figure 2 as well.

Every cell imports the code of the checkout that this file lies in, as it is at that moment. A run takes hours, so start
it in a worktree that nobody edits (`git worktree add ../paper-run`); each result holds the commit, and whether files of
the code differed from it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paper_tables import ablation, attention, classification, convergence, segmentation, summary, tokenizers
from paper_tables.budgets import BUDGETS
from paper_tables.cells import Cell, Failure, Runner
from paper_tables.chains import Chains, once
from paper_tables.child import environment
from paper_tables.prepare import lay_out

HERE = Path(__file__).parent
TABLES = {
    "1": classification.TABLE,
    "3": segmentation.TABLE,
    "4": ablation.TABLE,
    "convergence": convergence,
    "figure 2": attention.TABLE,
}
WITH_MASKS = ("3", "4", "figure 2")
WRITTEN = ("small", "gpu")
"""Budgets whose sections are written, in order."""
PICTURE_WIDTH = 1400
PICTURED = {"scratch": "few", "pixels": "pretrain", "beit": "pretrain"}
"""Starts whose attention is drawn, each with the stage of the run."""


def cells_of(tables: Sequence[str], seeds: Sequence[int], budget: str) -> list[Cell]:
    """Returns the cells of several tables, each once and behind those that it needs; whole seeds first."""
    every = [cell for name in tables if name != "8" for cell in TABLES[name].cells(seeds, budget)]
    return once([*every, *(tokenizers.cells(seeds) if "8" in tables else ())])


def needed(cells: Sequence[Cell], word: str) -> list[Cell]:
    """Returns the cells whose names hold `word`, and those they need."""
    chosen = {cell.name for cell in cells if word in cell.name}
    for cell in reversed(cells):
        chosen |= cell.waits_for if cell.name in chosen else set()
    return [cell for cell in cells if cell.name in chosen]


def lines_of(
    name: str, runner: Runner, seeds: Sequence[int], budgets: Sequence[str], pictures: Path | None = None
) -> list[str]:
    """Returns what stands between a table's marks: a section for each budget that has figures.

    Args:
        pictures: Folder of the pictures that figure 2 shows, beside the document.
    """
    if name == "8":
        return tokenizers.rows(runner, seeds)
    lines: list[str] = []
    for budget in budgets:
        section = TABLES[name].rows(runner, seeds, budget)
        if section and name == "figure 2" and pictures is not None:
            section += _shown(pictures, budget)
        lines += [*section, ""] if section else []
    return lines


def summary_of(runner: Runner, seeds: Sequence[int], budgets: Sequence[str]) -> list[str]:
    """Returns what stands on top of all tables: a section for each budget that has figures."""
    lines: list[str] = []
    for budget in budgets:
        verdicts = {titled(name): table.verdicts(runner, seeds, budget) for name, table in TABLES.items()}
        cells = cells_of(list(TABLES), seeds, budget)
        documents = [document for cell in cells if (document := runner.result(cell))]
        section = summary.rows(verdicts, documents, budget)
        lines += [*section, ""] if section else []
    return lines


def titled(name: str) -> str:
    """Returns a table's name as its marks have it."""
    return name if name[0].isalpha() else f"table {name}"


def _shown(pictures: Path, budget: str) -> list[str]:
    lines = []
    for start in PICTURED:
        file = pictures / f"attention-{start}-{budget}.jpg"
        if file.exists():
            lines.append(f"\n`{start}`, seed 0:\n\n![Attention of points on photographs]({pictures.name}/{file.name})")
    return lines


def draw_attention(runner: Runner, photos: Path, budget: str, pictures: Path) -> list[str]:
    """Draws figure 2 of seed 0, the same photographs for each start. Returns a text for each that failed."""
    failures = []
    for start, stage in PICTURED.items():
        run = runner.run_of(Chains(budget).place(start, 0, stage))
        if (run / "checkpoints" / "latest").exists():
            drawn = runner.work / f"attention-{start}-{budget}.png"
            words = ["attn-map", str(photos), "--limit", "3", "--model", str(run), "--figure", "-o", str(drawn)]
            command = [sys.executable, "-m", "beitcli", *words, "--overwrite", "--device", runner.device, "--quiet"]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True)
            if done.returncode:
                failures.append(f"attn-map of {start}: {done.stderr}")
            else:
                save_smaller(drawn, pictures / f"attention-{start}-{budget}.jpg")
    return failures


def save_smaller(drawn: Path, picture: Path) -> None:
    """Saves a picture as a JPEG of `PICTURE_WIDTH` pixels at most."""
    from PIL import Image

    with Image.open(drawn) as whole:
        smaller = whole.convert("RGB")
        smaller.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH), Image.Resampling.LANCZOS)
        smaller.save(picture, quality=88)


def write_between_marks(document: Path, name: str, lines: list[str]) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end name -->`. Raises ValueError if the marks are gone."""
    text = document.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->\n"
    if start not in text or end not in text:
        raise ValueError(f"{document} has no marks {start.strip()} and {end.strip()}.")
    before, after = text.partition(start)[0], text.partition(end)[2]
    body = "\n".join(lines).rstrip()
    document.write_text(before + start + (f"{body}\n\n" if body else "\n") + end + after)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.tar and val-*.tar")
    parser.add_argument("--segmentation", type=Path, help="folder of train/ and val/ with images/ and masks/")
    parser.add_argument("--photos", type=Path, help="photographs whose attention is drawn")
    parser.add_argument("--budget", choices=BUDGETS, default="small")
    parser.add_argument("--only", choices=[*TABLES, "8"], help="one table; else all but those whose data is not given")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--jobs", type=int, default=cores(), help="commands at once, one thread each; else one a core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--match", default="", help="only cells whose names hold this, and those they need")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "paper")
    parser.add_argument("--work", type=Path, default=Path("runs") / "paper", help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "results.md")
    parser.add_argument("--write-only", action="store_true", help="write the tables, run nothing")
    parser.add_argument("--list", action="store_true", help="print the cells that would run, run nothing")
    given = parser.parse_args()
    if given.only in WITH_MASKS and not given.segmentation:
        parser.error(f"--only {given.only} needs --segmentation.")
    return given


def run(given: argparse.Namespace, runner: Runner, cells: Sequence[Cell]) -> list[str]:
    """Lays the data out, runs what is missing and draws. Returns a text for each failure."""
    failures: list[str] = []
    if given.write_only:
        runner.say(f"{len(runner.stale(cells))} results are of other commands than those of today")
    else:
        segmentation = given.segmentation.resolve() if given.segmentation else None
        try:
            folders = lay_out(runner.work, runner.data, segmentation, given.budget)
        except Failure as failure:
            return [str(failure)]
        failures += replace(runner, folders=folders).run_all(cells, given.jobs)
    if given.photos:
        failures += draw_attention(runner, given.photos.resolve(), given.budget, given.docs.parent / "pictures")
    return failures


def write(given: argparse.Namespace, runner: Runner, seeds: Sequence[int]) -> None:
    """Writes the tables, the summary and the picture of the convergence from what is there."""
    pictures = given.docs.parent / "pictures"
    budgets = ["smoke"] if given.budget == "smoke" else WRITTEN
    for name in [given.only] if given.only else [*TABLES, "8"]:
        write_between_marks(given.docs, titled(name), lines_of(name, runner, seeds, budgets, pictures))
    write_between_marks(given.docs, "summary", summary_of(runner, seeds, budgets))
    for budget in budgets:
        convergence.draw(runner, seeds, budget, pictures)


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    runner = Runner(given.results, given.work.resolve(), given.data.resolve(), given.device, say)
    seeds, tables = range(given.seeds), [given.only] if given.only else [*TABLES, "8"]
    if not given.segmentation and not given.only:
        tables = [name for name in tables if name not in WITH_MASKS]
    cells = needed(cells_of(tables, seeds, given.budget), given.match)
    if given.list:
        stale = runner.stale(cells)
        lines = [(cell, f"  ({stale[cell.name]})" if cell.name in stale else "") for cell in runner.missing(cells)]
        sys.stdout.writelines(f"{cell.name}: {cell.command}{reason}\n" for cell, reason in lines)
        return 0
    failures: list[str] = []
    is_stopped = False
    try:
        failures = run(given, runner, cells)
    except KeyboardInterrupt:
        is_stopped = True
    write(given, runner, seeds)
    for failure in failures:
        say(failure)
    return 130 if is_stopped else 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
