"""Starts the steps, ends those past their limit, and rewrites the report after each (stdlib only).

This process never loads torch, so that no CUDA context of its own takes memory or breaks. The processes of the next
group are started early and wait behind their imports: their seconds then cost no device time. Each step is a process
group of its own; its results are the JSON file that it rewrites with every number, taken also when it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gpu_steps.report import write_report
from gpu_steps.schedule import NAMES, Step

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
_POLL_SECONDS = 0.05
_RESERVE_SECONDS = 3.0  # for the last report
_KILL_SECONDS = 5.0
_TAIL_LINES, _LOG_BYTES = 30, 200_000
MISSING_PACKAGE = 3  # exit code of a step


@dataclass
class Running:
    """A started step.

    Attributes:
        begun: When it was let go, by the monotonic clock; 0 while it waits.
        until: When it is killed.
    """

    step: Step
    process: subprocess.Popen[str]
    log: IO[bytes]
    result: Path
    begun: float = 0.0
    until: float = 0.0


@dataclass
class Parent:
    """One run of the script.

    Attributes:
        arguments: As parsed by `gpu.py`.
        document: What gpu.json holds.
    """

    arguments: Any
    out: Path
    scratch: Path
    start: float = field(default_factory=time.monotonic)
    signalled: int = 0
    alive: list[Running] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)

    def run(self, groups: list[list[Step]]) -> int:
        """All groups in order; the exit code."""
        chosen = [step.name for group in groups for step in group]
        self.document = {
            "device": self.arguments.device,
            "small": self.arguments.small,
            "seed": self.arguments.seed,
            "deadline": self.arguments.deadline,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": 0.0,
            "complete": False,
            "steps": {name: {"status": "not asked for"} for name in NAMES if name not in chosen}
            | {name: {"status": "not reached"} for name in chosen},
        }
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._on_signal)
        self.write()
        waiting: list[Running] = []
        try:
            for number, group in enumerate(groups):
                ready = waiting or self.start_all(group)
                waiting = []
                started = self.let_go(ready)
                if number + 1 < len(groups) and started:
                    waiting = self.start_all(groups[number + 1])
                self.watch(started)
                if self.signalled:
                    break
            self.document["complete"] = not self.signalled
        finally:
            self.end_all()
            self.write()
        return 128 + self.signalled if self.signalled else 0

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signalled = number

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.arguments.deadline - self.elapsed() - _RESERVE_SECONDS

    def start_all(self, group: list[Step]) -> list[Running]:
        """Starts those steps of a group for which there is time; one that cannot be started is recorded so."""
        started = []
        for step in group:
            if self.signalled or not self.has_time(step):
                continue
            try:
                started.append(self.spawn(step, beside=len(group)))
            except OSError as error:
                self.document["steps"][step.name] = {"status": "failed", "last_lines": [f"not started: {error}"]}
        return started

    def has_time(self, step: Step) -> bool:
        """A limit that was asked for stands above what the step should have at least, and not above the deadline."""
        least = 0.0 if step.name in self.arguments.limits else min(step.least, step.limit)
        return self.left() > least

    def spawn(self, step: Step, beside: int = 1) -> Running:
        """Starts a step's process, which imports what it needs and then waits for a line on its stdin.

        Args:
            beside: Steps that share the cores: each compiler starts a process a core otherwise, 16 times 8 on 16 cores.
        """
        result = self.scratch / "results" / f"{step.name}.json"
        result.unlink(missing_ok=True)
        given = self.arguments
        words = [sys.executable, str(SCRIPT), "--step", step.name, "--result", str(result), "--device", given.device]
        words += ["--out", str(self.out), "--scratch", str(self.scratch), "--seed", str(given.seed)]
        words += ["--small"] if given.small else []
        log = (self.scratch / "logs" / f"{step.name}.log").open("wb")
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=self.environment(beside), text=True,
            start_new_session=True,
        )  # fmt: skip
        running = Running(step, process, log, result)
        self.alive.append(running)
        return running

    def environment(self, beside: int) -> dict[str, str]:
        """Of the steps: caches of compiled code in the scratch folder, this checkout first on the path, no network."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "BEIT_CACHE_DIR": "beit"}
        return (
            {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
            | {name: str(self.scratch / folder) for name, folder in caches.items()}
            | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
            | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, len(os.sched_getaffinity(0)) // beside))}
        )

    def let_go(self, ready: list[Running]) -> list[Running]:
        """Lets the waiting steps begin for which there is time."""
        started = []
        for running in ready:
            if self.signalled or not self.has_time(running.step):
                self.end(running)
                continue
            limit = min(self.arguments.limits.get(running.step.name, running.step.limit), self.left())
            running.begun = time.monotonic()
            running.until = running.begun + limit
            with suppress(OSError):  # it has died already: `watch` tells
                assert running.process.stdin is not None
                running.process.stdin.write("go\n")
                running.process.stdin.flush()
            started.append(running)
        return started

    def watch(self, started: list[Running]) -> None:
        """Waits for the steps, each until its limit, and reports each as it ends."""
        left = list(started)
        while left:
            now = time.monotonic()
            for running in list(left):
                code = running.process.poll()
                if code is None and now < running.until and not self.signalled:
                    continue
                status = "" if code is not None else "interrupted" if self.signalled else "timed out"
                self.end(running)
                left.remove(running)
                self.take(running, status)
            time.sleep(_POLL_SECONDS)

    def end(self, running: Running) -> None:
        """Kills what is left of a step's process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that hangs in the driver does not hold up the rest
            running.process.wait(timeout=_KILL_SECONDS)
        if running.process.stdin is not None:
            with suppress(OSError):
                running.process.stdin.close()
        running.log.close()
        if running in self.alive:
            self.alive.remove(running)

    def end_all(self) -> None:
        for running in list(self.alive):
            self.end(running)

    def take(self, running: Running, status: str) -> None:
        """Puts a step's results into the document, and writes it."""
        document: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            document = json.loads(running.result.read_text())
        code, errors = running.process.returncode, document.get("errors", {})
        if not status:
            status = {0: "ok", MISSING_PACKAGE: "missing package"}.get(code, "failed")
            if status == "ok" and errors:
                status = "errors"
        entry: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - running.begun, 2)}
        entry["results"] = document.get("results", {})
        if errors:
            entry["errors"] = errors
        tail = self.keep_log(running.step.name)
        if status not in ("ok", "errors"):
            entry |= {"exit_code": code, "last_lines": tail}
        self.document["steps"][running.step.name] = entry
        self.write()
        self.say(f"{running.step.name:12} {status:10} {entry['seconds']:7.1f} s, {self.elapsed():6.1f} s in all")

    def keep_log(self, name: str) -> list[str]:
        """Appends the end of a step's output to gpu.log; its last lines."""
        content = b""
        with suppress(OSError):
            content = (self.scratch / "logs" / f"{name}.log").read_bytes()[-_LOG_BYTES:]
            with (self.out / "gpu.log").open("ab") as log:
                log.write(f"===== {name}\n".encode() + content + b"\n")
        return content.decode(errors="replace").splitlines()[-_TAIL_LINES:]

    def write(self) -> None:
        """Rewrites the report; a full disk does not end the run."""
        self.document["seconds"] = round(self.elapsed(), 1)
        try:
            write_report(self.document, self.out)
        except OSError as error:
            sys.stderr.write(f"The report could not be written: {error}\n")

    def say(self, line: str) -> None:
        with suppress(OSError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
