"""The process of one target: feeds it inputs by atheris, and notes what ends in anything but a value or a refusal.

An error is noted once a place in the source, and the process goes on. A crash in C, more than 10 s of processor time
for one input, or more than 1 GB of memory end the process; the input lies in a file that is mapped, so that the parent
finds it, notes it and starts the target again.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import pkgutil
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from fuzz_readers.target import Place, Prepared, Target

SECONDS, MEMORY, ADDRESSES = 10, 1_000_000_000, 6_000_000_000
MEMORY_CODE = 79
_INSTRUMENTED = ["beitcli", "PIL"]


def import_instrumented() -> None:
    """Imports all of the program, so that it counts what it comes through; done once, before the targets are forked."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        import PIL.Image

        import beitcli

        PIL.Image.init()
        for module in pkgutil.walk_packages(beitcli.__path__, "beitcli."):
            if module.name != "beitcli.__main__":
                importlib.import_module(module.name)


def run(target: Target, folder: Path, models: Path, seconds: float, seed: int) -> None:
    """Fuzzes one target for a time of its processor; ends the process.

    Args:
        folder: For `corpus/`, `input` and `report.json`.
    """
    import atheris

    prepared = _prepared(target, folder, models)
    corpus = folder / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        for number, content in enumerate(prepared.seeds):
            (corpus / f"seed-{number:03d}").write_bytes(content)
    for content in prepared.seeds:  # what is imported late
        outcome(prepared, content)
    driver = Driver(prepared, folder, target.longest, seconds)
    options = [f"-max_len={target.longest}", "-rss_limit_mb=0", "-timeout=1000000", f"-seed={seed}"]
    arguments = [sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)]
    atheris.Setup(arguments, driver.one, custom_mutator=driver.mutate if prepared.mutate else None)
    atheris.Fuzz()


def _prepared(target: Target, folder: Path, models: Path) -> Prepared:
    work = Path(os.environ["FUZZ_MEMORY"]) / f"{target.name}-{os.getpid()}"
    work.mkdir(parents=True)
    os.environ["BEIT_CACHE_DIR"] = str(work / "cache")
    os.chdir(work)
    return target.prepare(Place(work, models))


def reproduce(target: Target, folder: Path, models: Path, content: bytes) -> str:
    """What one input shows in this process; empty if that is right."""
    prepared = _prepared(target, folder, models)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = outcome(prepared, content)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return told[1] if told else f"{used / 1e6:.0f} MB" if used > MEMORY else ""


def outcome(prepared: Prepared, content: bytes) -> tuple[str, str] | None:
    """Returns (kind, text) of what is wrong with how one input ends; None if it is read or refused."""
    from beitcli.errors import BeitError

    try:
        prepared.use(content)
    except BeitError as error:
        return None if str(error).strip() else ("no words", "an error without words")
    except prepared.also:
        return None
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "beitcli" in frame.filename] or frames
        last = ours[-1]
        return f"{type(error).__name__} {Path(last.filename).name}:{last.lineno}", traceback.format_exc(limit=-8)
    return None


class Driver:
    """Counts, limits and notes."""

    def __init__(self, prepared: Prepared, folder: Path, longest: int, seconds: float) -> None:
        self.prepared, self.folder, self.longest, self.seconds = prepared, folder, longest, seconds
        self.runs, self.findings = 0, {}  # type: int, dict[str, dict[str, Any]]
        with (folder / "input").open("wb") as file:
            file.truncate(longest + 8)
        self.input = (folder / "input").open("r+b")
        self.shared = mmap.mmap(self.input.fileno(), longest + 8)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.begun, self.told = time.process_time(), time.process_time()
        self.peak = _peak()

    def one(self, content: bytes) -> None:
        used = time.process_time() - self.begun
        if used > self.seconds:
            self.report(used)
            os._exit(0)
        if used - self.told > 5:
            self.report(used)
        self.shared[: 8 + len(content)] = len(content).to_bytes(8, "little") + content
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        told = outcome(self.prepared, content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.runs += 1
        if told and told[0] not in self.findings:
            self.findings[told[0]] = {"input": content.hex(), "told": told[1]}
            self.report(used)
        if _peak() - self.peak > MEMORY:
            self.report(used)
            os._exit(MEMORY_CODE)

    def mutate(self, content: bytes, longest: int, seed: int) -> bytes:
        import atheris

        assert self.prepared.mutate is not None
        if random.Random(seed).random() < 0.5:
            return atheris.Mutate(content, longest)
        made = self.prepared.mutate(content, seed)
        return made if len(made) <= longest else atheris.Mutate(content, longest)

    def report(self, used: float) -> None:
        self.told = used
        beside = self.folder / "report.partial"
        beside.write_text(json.dumps({"runs": self.runs, "seconds": round(used, 1), "findings": self.findings}))
        beside.replace(self.folder / "report.json")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
