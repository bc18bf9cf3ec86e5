"""tests/gpu in this process; every test's outcome is written as it ends, so that a crash or a hang names its test."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from gpu_steps.context import Context
from gpu_steps.parent import ROOT

_TURN = {"test_data_path.py": 0, "test_cuda.py": 2}  # that one compiles kernels, and may not end in time
_MESSAGE_LINES, _MESSAGE_CHARACTERS = 12, 1500


class Recorder:
    """A pytest plugin; the step's file is written as each test begins, with all that is known by then."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: list[dict[str, str]] = []
        self.seconds: dict[str, float] = {}
        context.results |= {"counts": self.counts, "seconds": self.seconds}

    def pytest_collection_finish(self, session: Any) -> None:
        self.context.record("collected", len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.context.record("running", nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note_failure(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note_failure(report)
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1
        if report.when == "call":
            self.seconds[report.nodeid.partition("::")[2]] = report.duration
        if report.when == "teardown" and report.nodeid.partition("::")[2] in self.seconds:
            gc.collect()  # what a test leaves in cycles holds the device's memory

    def note_failure(self, report: Any) -> None:
        self.counts["failed"] += 1
        lines = [line for line in str(report.longrepr).splitlines() if line.startswith("E ")]
        lines = lines or str(report.longrepr).splitlines()[-_MESSAGE_LINES:]
        message = "\n".join(lines[:_MESSAGE_LINES])[:_MESSAGE_CHARACTERS]
        self.failures.append({"test": f"{report.nodeid} ({getattr(report, 'when', 'collect')})", "message": message})
        self.context.record("failures", self.failures)


def run(context: Context) -> None:
    sys.path.insert(0, str(ROOT))
    folder = context.scratch / "pytest"
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"), key=lambda path: (_TURN.get(path.name, 1), path.name))
    words = [*map(str, files), f"--rootdir={ROOT}", f"--basetemp={folder}", "-p", "no:cacheprovider"]
    words += [f"--junitxml={context.out / 'tests-gpu.xml'}", "-c", str(ROOT / "pyproject.toml"), "--tb=short"]
    recorder = Recorder(context)
    code = pytest.main(words, plugins=[recorder])
    if code:
        named = ", ".join(failure["test"].rpartition("::")[2] for failure in recorder.failures)
        context.errors["pytest"] = f"exit code {int(code)}, failed: {named or 'none'}"
    context.record("exit_code", int(code))
