"""Cells: one `beit` command each, with a result file of its own, run once whatever they are needed for.

A result file holds the command, its processor seconds, the hardware and the document that the command printed
(`--json`). A cell whose result file is there is not run again. What a command leaves (a run) lies in the work folder;
if a cell that still has to run needs a run that is gone, the cell that makes it runs again, and must print the same
figures.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import hardware

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
        """What a cell's command printed; None if it has not run."""
        file = self.result_file(cell)
        return json.loads(file.read_text()) if file.exists() else None

    def run_of(self, name: str) -> Path:
        return self.work / name

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells to run, in order: those without a result, and those whose run another one of them needs."""
        by_name = {cell.name: cell for cell in cells}
        to_run = {cell.name for cell in cells if self.result(cell) is None}
        for cell in reversed(cells):  # what a cell needs stands before it
            if cell.name in to_run:
                to_run |= {name for name in cell.needs if by_name[name].makes_run and not self._made(by_name[name])}
        return [cell for cell in cells if cell.name in to_run]

    def _made(self, cell: Cell) -> bool:
        return self.result(cell) is not None and (self.run_of(cell.name) / "checkpoints" / "latest").exists()

    def run(self, cell: Cell, stop: threading.Event) -> None:
        """Runs one cell with one thread. Raises Failure."""
        out = self.run_of(cell.name)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        places = {name.rpartition("/")[2]: self.run_of(name) for name in cell.needs}
        command = cell.command.replace("{rate}", self.chosen_rate(cell) if cell.rates else "{rate}")
        words = [word.format(data=self.data, out=out, **self.folders, **places) for word in command.split()]
        program = [str(SCRIPTS / cell.script)] if cell.script else ["-m", "beitcli"]
        arguments = [sys.executable, *program, *words, "--device", self.device, "--json", "--quiet"]
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(arguments, env=environment(), stdout=printed, stderr=errors)
            code, cpu_seconds = _ended(child.pid, stop)
            child.returncode = code  # it has been waited for
            printed.seek(0)
            errors.seek(0)
            if code != 0:
                end = "\n".join(errors.read().decode(errors="replace").splitlines()[-10:])
                raise Failure(f"{cell.name}: exit code {code}: beit {command}\n{end}")
            figures = json.loads(printed.read().splitlines()[-1])
        if cell.has_curve:
            figures["curve"] = _curve(out / "metrics.jsonl")
        self._keep(cell, command, figures, cpu_seconds)

    def chosen_rate(self, cell: Cell) -> str:
        """Returns the learning rate whose cell measured the most, the first of several. Raises Failure."""
        tried = {rate: self._accuracy(name) for rate, name in cell.rates}
        return max(tried, key=lambda rate: tried[rate])

    def _accuracy(self, name: str) -> float:
        try:
            figures = json.loads((self.results / f"{name}.json").read_text())["figures"]
        except FileNotFoundError:
            raise Failure(f"{name} has not run, so there is no learning rate.") from None
        return float(figures["miou"] if "miou" in figures else figures["top1"])

    def _keep(self, cell: Cell, command: str, figures: Mapping[str, Any], cpu_seconds: float) -> None:
        """Writes the result file; if there is one already, the figures must be the same."""
        named = {name: value for name, value in figures.items() if not isinstance(value, str) or "/" not in value}
        former = self.result(cell)
        if former is not None and (changed := _differing(former["figures"], named)):
            raise Failure(f"{cell.name}: ran again, and printed another {', '.join(changed)}.")
        if former is None:
            document = {
                "command": f"python benchmarks/paper_tables/{cell.script} {command}"
                if cell.script
                else f"beit {command}",
                "cpu_seconds": round(cpu_seconds, 1),
                "hardware": hardware() | {"threads": 1},
                "figures": named,
            }
            file = self.result_file(cell)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(document, indent=1) + "\n")
            part.replace(file)
        self.say(f"{cell.name}: {cpu_seconds:.0f} s of one core")

    def run_all(self, cells: Sequence[Cell], jobs: int) -> None:
        """Runs what is missing, `jobs` at a time, in the order of `cells` as far as their needs allow.

        Raises:
            Failure: Of the first cell that failed, when those beside it have ended.
        """
        left, stop = self.missing(cells), threading.Event()
        self.say(f"{len(left)} of {len(cells)} cells to run")
        running: dict[Future[None], Cell] = {}
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while left or running:
                    waited_for = {cell.name for cell in [*left, *running.values()]}
                    for cell in [cell for cell in left if not waited_for & cell.waits_for][: jobs - len(running)]:
                        left.remove(cell)
                        running[pool.submit(self.run, cell, stop)] = cell
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        future.result()
            except BaseException:
                stop.set()
                raise


def environment() -> dict[str, str]:
    """Returns the variables of every command: one thread, no settings from outside, the program of this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
    path = os.pathsep.join(filter(None, (str(SCRIPTS.parents[1]), kept.get("PYTHONPATH"))))
    return kept | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")} | {"PYTHONPATH": path}


def _curve(file: Path) -> list[tuple[int, float]]:
    """Returns the accuracy on held-out images at each step where it was measured."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [(line["step"], line["held_out_top1"]) for line in lines if "held_out_top1" in line]


def _ended(pid: int, stop: threading.Event) -> tuple[int, float]:
    """Waits for a child process. Returns its exit code and its processor seconds, which depend little on other load."""
    while True:
        waited, status, usage = os.wait4(pid, os.WNOHANG)
        if waited:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if stop.is_set():
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)


def _differing(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the names of former figures that are others now; what a later program prints besides does not count."""
    kept = json.loads(json.dumps(now))  # as it is read back
    return sorted(name for name in former if not name.endswith(_TIMED) and former[name] != kept.get(name))
