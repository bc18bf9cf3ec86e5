"""Do the paper's claims hold in miniature? Runs the cells of its tables that are missing, and writes the tables.

    python benchmarks/paper.py --data DIR [--only TABLE] [--seeds N] [--jobs N] [--match WORD]

DIR holds a labelled data set as tar shards, train-*.tar and val-*.tar. Each cell is one `beit` command with a result
file below `results/paper/`; cells that have one are not run again, so the work can be stopped (Ctrl-C) and gone on with
at any moment. Whole seeds are completed first. Every command has one thread; --jobs runs several at once. The tables
are written between the marks of docs/results.md, from what is there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from paper_tables import tokenizers
from paper_tables.cells import Failure, Runner

HERE = Path(__file__).parent
TABLES = {"8": tokenizers}


def write_between_marks(document: Path, name: str, lines: list[str]) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- end name -->`. Raises ValueError if the marks are gone."""
    text = document.read_text()
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->\n"
    if start not in text or end not in text:
        raise ValueError(f"{document} has no marks {start.strip()} and {end.strip()}.")
    before, after = text.partition(start)[0], text.partition(end)[2]
    document.write_text(before + start + "\n".join(lines).rstrip() + "\n\n" + end + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.tar and val-*.tar")
    parser.add_argument("--only", choices=TABLES, help="one table")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--match", default="", help="only cells whose names hold this, and those they need")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "paper")
    parser.add_argument("--work", type=Path, default=Path("runs") / "paper", help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "results.md")
    parser.add_argument("--write-only", action="store_true", help="write the tables, run nothing")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    runner = Runner(given.results, given.work.resolve(), given.data.resolve(), given.device, say)
    tables = {given.only: TABLES[given.only]} if given.only else TABLES
    seeds, code = range(given.seeds), 0
    if not given.write_only:
        every = sorted((cell for table in tables.values() for cell in table.cells(seeds)), key=lambda cell: cell.seed)
        chosen = {cell.name for cell in every if given.match in cell.name}
        for cell in reversed(every):
            chosen |= set(cell.needs) if cell.name in chosen else set()
        try:
            runner.run_all([cell for cell in every if cell.name in chosen], given.jobs)
        except Failure as failure:
            say(str(failure))
            code = 1
        except KeyboardInterrupt:
            code = 130
    for name, table in tables.items():
        write_between_marks(given.docs, f"table {name}", table.rows(runner, seeds))
    return code


if __name__ == "__main__":
    sys.exit(main())
