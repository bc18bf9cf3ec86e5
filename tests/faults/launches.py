"""Real launches, `beit ... --gpus N` in a process of its own, and faults put into their processes from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Python imports it in every process of a launch: where RANK is the faulty one, it does harm in one step.
_SITECUSTOMIZE = """
import importlib.abc, importlib.machinery, os, signal, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "beitcli.engine.trainer.loop":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def loaded(module):
            load(module)
            step, calls = module.optimizer_step, [0]
            def harmed(*args, **kwargs):
                calls[0] += 1
                if calls[0] == int(os.environ["FAULTY_STEP"]):
                    @HARM@
                return step(*args, **kwargs)
            module.optimizer_step = harmed
        spec.loader.exec_module = loaded
        return spec

is_faulty = os.environ.get("RANK") in os.environ["FAULTY_RANKS"].split(",")
if is_faulty and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") <= @LAST@:
    sys.meta_path.insert(0, Finder())
"""


def harmed(
    folder: Path, rank: int, step: int, harm: str, *, attempts: int = 100, more_ranks: Sequence[int] = ()
) -> dict[str, str]:
    """An environment in which one rank does harm right before its `step`-th step of an attempt.

    Args:
        harm: A Python statement.
        attempts: How many of the job's attempts are harmed, from the first.
        more_ranks: Ranks that are harmed too.
    """
    folder.mkdir()
    last = f'"{attempts - 1}"' if attempts < 10 else '"99"'
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.replace("@HARM@", harm).replace("@LAST@", last))
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "FAULTY_RANKS": ",".join(map(str, (rank, *more_ranks))),
        "FAULTY_STEP": str(step),
    }


class Launched:
    """`python -m beitcli WORDS`; ends with the test, and all that it started with it."""

    def __init__(self, words: Sequence[object], environment: dict[str, str] | None = None, prefix: Sequence[str] = ()):
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "beitcli", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        )

    def ended(self, seconds: float = 240) -> tuple[int, str, str]:
        """(exit code, stdout, stderr in one line)."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {seconds} s: {err[-3000:]}") from None
        return self.process.returncode, out, " ".join(err.split())

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that are there now."""
        found = {}
        for pid in _children(self.process.pid):
            environment = _environment(pid)
            if "RANK" in environment:
                found[int(environment["RANK"])] = pid
        return found

    def wait_until(self, seen: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            assert self.process.poll() is None, self.ended()
            assert time.monotonic() < deadline, "what was awaited did not come"
            time.sleep(0.02)


def logged(run: Path, steps: int) -> Callable[[], bool]:
    """Whether a run has come so far."""

    def seen() -> bool:
        path = run / "metrics.jsonl"
        return path.exists() and path.read_text().count("\n") >= steps

    return seen


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(each) for each in task.read_text().split()]
    return found + [below for each in found for below in _children(each)]


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
