"""Cells: one `beit` command each, with a result file of its own, run once whatever they are needed for.

A result file holds the command, its processor seconds, the hardware, the commit of the code and the document that the
command printed (`--json`). A cell whose result file is there is not run again, unless its command is another now, or
that of a cell it needs: then the former result moves to `former/` in the work folder. What a command leaves (a run)
lies in the work folder; if a cell that still has to run needs a run that is gone, the cell that makes it runs again,
and must print the same figures. A cell that fails takes along those that need it; all others run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import hardware

from paper_tables.child import curve_of, document_of, ended, environment
from paper_tables.code_version import code_version

_TIMED = ("seconds", "per_second")  # ends of the names of figures that differ from run to run
SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """One command.

    Attributes:
        name: Its result file below the results, without ending: TABLE/DATA/VARIANT/seed-N/STAGE.
        command: The words after `beit`. `{data}` is the folder of the data, `{out}` the run that the command makes, and
            `{STAGE}` the run of the cell of `needs` whose name ends in STAGE; `{rate}` is the chosen learning rate.
        needs: Names of the cells whose runs it reads.
        seed: Whole seeds are completed first.
        rates: Learning rates, each with the name of the cell that tried it.
        has_curve: Whether accuracy on the way is kept, [step, top-1].
        script: File beside this one that runs in place of `beit`.
    """

    name: str
    command: str
    seed: int
    needs: tuple[str, ...] = ()
    rates: tuple[tuple[str, str], ...] = ()
    has_curve: bool = False
    script: str = ""

    @property
    def waits_for(self) -> set[str]:
        return {*self.needs, *(name for _, name in self.rates)}

    @property
    def makes_run(self) -> bool:
        return "{out}" in self.command


class Failure(Exception):
    """A command failed, or printed other figures than before."""


@dataclass(frozen=True)
class Runner:
    """Runs cells.

    Attributes:
        results: Folder of the result files.
        work: Folder of the runs.
        data: Folder that stands for `{data}`.
        device: Of every command.
        say: Receives a line about each cell.
        folders: What stands for other names in braces.
    """

    results: Path
    work: Path
    data: Path
    device: str
    say: Callable[[str], None]
    folders: Mapping[str, Path] = field(default_factory=dict)

    def result_file(self, cell: Cell) -> Path:
        return self.results / f"{cell.name}.json"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Returns what is kept of a cell; None if it has not run, or its file is damaged."""
        try:
            document = json.loads(self.result_file(cell).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) and {"command", "figures"} <= document.keys() else None

    def run_of(self, name: str) -> Path:
        return self.work / name

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to run, in order: those without a result that counts, and those whose run one of them needs."""
        by_name = {cell.name: cell for cell in cells}
        to_run = {cell.name for cell in cells if self.result(cell) is None} | self.stale(cells).keys()
        for cell in reversed(cells):  # what a cell needs stands before it
            if cell.name in to_run:
                to_run |= {name for name in cell.needs if by_name[name].makes_run and not self._made(by_name[name])}
        return [cell for cell in cells if cell.name in to_run]

    def stale(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Returns the names of cells whose kept result does not count, in order, each with the reason."""
        found: dict[str, str] = {}
        for cell in cells:  # what a cell needs stands before it
            if not self.result_file(cell).exists():
                continue
            document = self.result(cell)
            if document is None:
                found[cell.name] = "its result file is damaged"
            elif document["command"] not in self._commands(cell):
                found[cell.name] = f"its command was `{document['command']}`"
            elif changed := sorted(cell.waits_for & found.keys()):
                found[cell.name] = f"{changed[0]} runs again"
        return found

    def _commands(self, cell: Cell) -> set[str]:
        """Returns the commands of which a kept result counts: with the chosen rate, with any while none is chosen."""
        rates = {rate for rate, _ in cell.rates}
        if all(self.result(Cell(name, "", 0)) for _, name in cell.rates):
            rates = {self.chosen_rate(cell)} if cell.rates else {""}
        return {_shown(cell, cell.command.replace("{rate}", rate)) for rate in rates}

    def retire(self, cells: Sequence[Cell]) -> None:
        """Moves results that do not count to `former/` in the work folder, those of dependants first, and says so."""
        for name, reason in reversed(self.stale(cells).items()):
            file, former = self.results / f"{name}.json", self.work / "former" / f"{name}.json"
            former.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, former)
            self.say(f"{name} runs again: {reason}. The former result: {former}")

    def _made(self, cell: Cell) -> bool:
        return self.result(cell) is not None and (self.run_of(cell.name) / "checkpoints" / "latest").exists()

    def run(self, cell: Cell, stop: threading.Event) -> None:
        """Runs one cell with one thread.

        Raises:
            Failure: The command failed, printed no document or other figures than before, or could not be started.
        """
        try:
            self._run(cell, stop)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Failure(f"{cell.name}: {type(error).__name__}: {error}") from error

    def _run(self, cell: Cell, stop: threading.Event) -> None:
        code_then, out = code_version(), self.run_of(cell.name)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        places = {name.rpartition("/")[2]: self.run_of(name) for name in cell.needs}
        command = cell.command.replace("{rate}", self.chosen_rate(cell) if cell.rates else "{rate}")
        words = [word.format(data=self.data, out=out, **self.folders, **places) for word in command.split()]
        program = [str(SCRIPTS / cell.script)] if cell.script else ["-m", "beitcli"]
        arguments = [sys.executable, *program, *words, "--device", self.device, "--json", "--quiet"]
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(arguments, env=environment(), stdout=printed, stderr=errors)
            code, cpu_seconds = ended(child.pid, stop)
            child.returncode = code  # it has been waited for
            printed.seek(0)
            errors.seek(0)
            if code != 0:
                end = "\n".join(errors.read().decode(errors="replace").splitlines()[-10:])
                raise Failure(f"{cell.name}: exit code {code}: beit {command}\n{end}")
            figures = document_of(printed.read())
            if figures is None:
                raise Failure(f"{cell.name}: its last line is no JSON document: beit {command}")
        if cell.has_curve:
            figures["curve"] = curve_of(out / "metrics.jsonl")
        self._keep(cell, command, figures, {"cpu_seconds": round(cpu_seconds, 1), "code": code_then})

    def chosen_rate(self, cell: Cell) -> str:
        """Returns the learning rate whose cell measured the most, the first of several. Raises Failure."""
        tried = {rate: self._accuracy(name) for rate, name in cell.rates}
        return max(tried, key=lambda rate: tried[rate])

    def _accuracy(self, name: str) -> float:
        document = self.result(Cell(name, "", 0))
        if document is None:
            raise Failure(f"{name} has not run, so there is no learning rate.")
        figures = document["figures"]
        return float(figures["miou"] if "miou" in figures else figures["top1"])

    def _keep(self, cell: Cell, command: str, figures: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
        """Writes the result file; if there is one already, the figures must be the same."""
        named = {name: value for name, value in figures.items() if not isinstance(value, str) or "/" not in value}
        former = self.result(cell)
        if former is not None and (changed := _differing(former["figures"], named)):
            raise Failure(f"{cell.name}: ran again, and printed another {', '.join(changed)}.")
        if former is None:
            document = {
                "command": _shown(cell, command),
                **beside,
                "hardware": hardware() | {"threads": 1},
                "figures": named,
            }
            file = self.result_file(cell)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(document, indent=1) + "\n")
            part.replace(file)
        self.say(f"{cell.name}: {beside['cpu_seconds']:.0f} s of one core")

    def run_all(self, cells: Sequence[Cell], jobs: int) -> list[str]:
        """Runs what is missing, `jobs` at a time, in the order of `cells` as far as their needs allow.

        Returns:
            A text for each cell that failed, and one that names those that were left out because they need one of them.
        """
        self.retire(cells)
        left, stop = self.missing(cells), threading.Event()
        self.say(f"{len(left)} of {len(cells)} cells to run")
        running: dict[Future[None], Cell] = {}
        failures: dict[str, str] = {}
        left_out: list[str] = []
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while left or running:
                    waited_for = {cell.name for cell in [*left, *running.values()]}
                    for cell in [cell for cell in left if not waited_for & cell.waits_for][: jobs - len(running)]:
                        left.remove(cell)
                        running[pool.submit(self.run, cell, stop)] = cell
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        name = running.pop(future).name
                        try:
                            future.result()
                        except Failure as failure:
                            failures[name] = str(failure)
                            self.say(f"{name} failed; what does not need it goes on")
                    left, dropped = without_dependants(left, {*failures, *left_out})
                    left_out += dropped
            except BaseException:
                stop.set()
                raise
        return [
            *failures.values(),
            *([f"Not run, as they need what failed: {', '.join(left_out)}"] if left_out else []),
        ]


def without_dependants(cells: Sequence[Cell], failed: set[str]) -> tuple[list[Cell], list[str]]:
    """Returns the cells that need none of `failed`, not by way of others either, and the names of those that do."""
    kept, lost = [], dict.fromkeys(failed)
    for cell in cells:  # what a cell needs stands before it
        if cell.waits_for & lost.keys():
            lost[cell.name] = None
        else:
            kept.append(cell)
    return kept, [name for name in lost if name not in failed]


def _shown(cell: Cell, command: str) -> str:
    """Returns a command as it is kept, from its words."""
    return f"python benchmarks/paper_tables/{cell.script} {command}" if cell.script else f"beit {command}"


def _differing(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names of former figures that are others now; what a later program prints besides does not count."""
    kept = json.loads(json.dumps(now))  # as it is read back
    return sorted(name for name in former if not name.endswith(_TIMED) and former[name] != kept.get(name))
