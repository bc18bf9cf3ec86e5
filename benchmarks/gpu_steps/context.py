"""What every step is given: device, sizes, a place for its numbers, and a clock for the device."""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gpu_steps.schedule import Step

_COMPILE = torch.compile


class Context:
    """The surroundings of one step.

    Attributes:
        small: Tiny sizes, that show that the code runs.
        results: Numbers so far; the file is rewritten with each `record`.
        errors: Part of the step to why it failed.
    """

    def __init__(self, given: argparse.Namespace, step: Step) -> None:
        self.step = step
        self.device = torch.device(given.device)
        self.small: bool = given.small
        self.seed: int = given.seed
        self.out: Path = given.out
        self.scratch: Path = given.scratch
        self.path: Path = given.result
        self.results: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        torch.manual_seed(self.seed)
        if self.small and not self.is_cuda:
            torch.compile = traced_alone  # type: ignore[assignment] # a CPU's C++ compiler takes minutes

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def record(self, name: str, value: Any) -> None:
        """Keeps a number, or a dict of them, and writes all that there are so far."""
        self.results[name] = value
        self._write()

    def note_error(self, name: str, error: BaseException) -> None:
        traceback.print_exception(error)
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
        self.errors[name] = f"{type(error).__name__}: {lines[0]}"[:400]
        self._write()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A part of the step whose failure leaves the others their turn; frees the device's memory behind it."""
        sys.stderr.write(f"--- {name}\n")
        try:
            yield
        except Exception as error:  # whatever it is, it is recorded
            self.note_error(name, error)
            error.__traceback__ = None  # its frames hold tensors
        self.free()

    def free(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _write(self) -> None:
        document = {"results": _plain(self.results), "errors": self.errors}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(document, allow_nan=False))
        partial.replace(self.path)

    def earlier(self, name: str) -> dict[str, Any]:
        """The results of a step before; empty where it has none."""
        try:
            return json.loads((self.scratch / "results" / f"{name}.json").read_text())["results"]
        except (OSError, ValueError, KeyError):
            return {}

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds_of(self, call: Callable[[], Any], times: int, warmup: int = 2) -> list[float]:
        """Seconds of each of `times` calls: CUDA events around each, nothing waits in between; a CPU's own clock."""
        for _ in range(warmup):
            call()
        self.wait()
        if not self.is_cuda:
            taken = []
            for _ in range(times):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            return taken
        events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else None


def traced_alone(model: Any, *, dynamic: bool | None = None, fullgraph: bool = False, **others: Any) -> Any:
    """torch.compile without code generation: the graph is traced and differentiated, and runs as it is."""
    return _COMPILE(model, dynamic=dynamic, fullgraph=fullgraph, backend="aot_eager")


def _plain(value: Any) -> Any:
    """What strict JSON has: no NaN, no infinity, no tensors."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """||value - reference|| / ||reference||, in float64."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((value - reference).norm() / reference.norm().clamp_min(1e-300))
