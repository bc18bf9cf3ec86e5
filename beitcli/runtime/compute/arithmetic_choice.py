"""Selects the arithmetic of training steps on a CPU by a benchmark: bf16 or fp32, and the library of fp32 products.

oneDNN is taken where it is as exact as fp32 is and faster by a margin, bf16 where the processor has units for it and it
is clearly faster than the better fp32. What was measured is kept in the cache folder by processor, torch, threads and
shape, so that the same command computes alike each time, however busy the machine is by then. It is kept only if two
rounds agree, which they do not beside much other work.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from beitcli.runtime.compute.arithmetic_trial import (
    BF16,
    MAX_ERROR,
    BlockShape,
    Contexts,
    Tried,
    benchmark_arithmetic,
    contexts,
    product_error,
    reason,
)
from beitcli.runtime.compute.cpu_matmul import (
    ONEDNN,
    TORCH,
    Arithmetic,
    has_bf16_units,
    has_onednn_route,
    matmul_by,
    processor_identity,
)
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.own_files import atomic_write_text
from beitcli.runtime.storage.regular_files import read_regular

LIBRARY_GAIN, BF16_GAIN = 1.15, 1.25  # times faster; less is within the noise of a shared machine
_TRIAL = 2  # kept measurements of another number are not read: the first ones were kept however busy the machine was
_NAMES = {TORCH: "torch's library", ONEDNN: "oneDNN"}
_remembered: dict[str, Tried] = {}


def choose_arithmetic(shape: BlockShape, precision: str, matmul: str) -> Arithmetic:
    """Returns the arithmetic of training steps on this CPU.

    Args:
        precision: `auto` or `fp32`.
        matmul: `auto`, or the library of fp32 products that is asked for.
    """
    if matmul == ONEDNN and (why := refused_onednn(shape)):
        return Arithmetic(about="fp32", note=f"fp32 products stay with torch's library: {why}.")
    candidates = dict(contexts())
    if precision != "auto":
        candidates.pop(BF16, None)
    if matmul != "auto":
        candidates = {name: candidates[name] for name in (matmul, BF16) if name in candidates}
    if len(candidates) == 1:
        return _described(next(iter(candidates)), Tried())
    tried = _measured(shape, candidates)
    chosen = decide(tried, TORCH if matmul == "auto" else matmul)
    if matmul == "auto" and chosen.matmul == ONEDNN and refused_onednn(shape):  # the kept errors may be outdated
        others = {name: taken for name, taken in tried.milliseconds.items() if name != ONEDNN}
        return decide(replace(tried, milliseconds=others))
    return chosen


def decide(tried: Tried, untimed: str = TORCH) -> Arithmetic:
    """Returns the fastest arithmetic by its margin.

    Args:
        untimed: Library of fp32 products if none was timed.
    """
    times = tried.milliseconds
    library = next((name for name in (TORCH, ONEDNN) if name in times), untimed)
    if TORCH in times and ONEDNN in times and times[TORCH] >= LIBRARY_GAIN * times[ONEDNN]:
        library = ONEDNN
    takes_bf16 = BF16 in times and library in times and times[library] >= BF16_GAIN * times[BF16]
    return _described(BF16 if takes_bf16 else library, tried, library)


def _described(chosen: str, tried: Tried, library: str = TORCH) -> Arithmetic:
    times = tried.milliseconds
    if chosen == BF16:
        gain = f" ({times[library] / times[BF16]:.1f}x fp32 here)" if library in times else ""
        return Arithmetic("bf16", TORCH, f"bf16{gain}")
    if chosen == ONEDNN:
        gain = f", {times[TORCH] / times[ONEDNN]:.1f}x torch's library here" if TORCH in times else ""
        return Arithmetic("fp32", ONEDNN, f"fp32 (oneDNN{gain})")
    return Arithmetic("fp32", TORCH, "fp32")


def refused_onednn(shape: BlockShape) -> str:
    """Returns why oneDNN is not to compute the fp32 products of this CPU; empty if it may."""
    if not has_onednn_route():
        return "torch hands none to oneDNN on this processor"
    try:
        error = product_error(shape, lambda: matmul_by(ONEDNN))
    except Exception as failure:  # torch raises many types if a kernel does not run
        return f"oneDNN computed none on this processor ({reason(failure)})"
    return "" if error <= MAX_ERROR[ONEDNN] else f"oneDNN rounds them on this processor (error {error:.1g})"


def restored_arithmetic(stored: Arithmetic, shape: BlockShape) -> Arithmetic:
    """Returns the arithmetic that a run began with; with torch's library where oneDNN is not to be used here.

    bf16 is kept on a processor that emulates it, with a note.
    """
    if stored.precision == BF16 and not has_bf16_units():
        note = "The run's steps are bf16, which this processor emulates: they take ten times as long as fp32, or more, "
        note += "and may round otherwise. For fp32 from here on, add --precision fp32."
        return Arithmetic("bf16", TORCH, "bf16, as the run began", note)
    if stored.matmul == ONEDNN and (why := refused_onednn(shape)):
        note = f"The run's fp32 products were oneDNN's, and are torch's here: {why}. Its weights differ by rounding."
        return Arithmetic(stored.precision, TORCH, f"{stored.precision}, as the run began", note)
    library = f" ({_NAMES[stored.matmul]})" if stored.matmul != TORCH else ""
    return Arithmetic(stored.precision, stored.matmul, f"{stored.precision}{library}, as the run began")


def _measured(shape: BlockShape, candidates: Contexts) -> Tried:
    """Returns the measurement of this processor and shape: the kept one, or a new one, which is kept if it is whole."""
    about = {
        "trial": _TRIAL,
        "torch": torch.__version__,
        "processor": processor_identity(),
        "threads": torch.get_num_threads(),
        "shape": asdict(shape),
        "candidates": sorted(candidates),
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    tried = _remembered.get(key) or _load(key)
    if tried is None:
        tried = benchmark_arithmetic(shape, candidates)
        if not tried.is_whole:  # memory may have been short: the next one tries again
            return tried
        if tried.is_settled:  # else the machine was busy, and the next process tries again
            _keep(key, about, tried)
    _remembered[key] = tried
    return tried


def _keep(key: str, about: dict[str, Any], tried: Tried) -> None:
    with suppress(OSError, RuntimeError):  # no cache, no home: it is remembered for this process alone
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps({"about": about, "tried": asdict(tried)}, indent=1) + "\n")


def _path(key: str) -> Path:
    return cache_folder() / "arithmetic" / f"{key}.json"


def _load(key: str) -> Tried | None:
    """Reads a kept measurement; None if there is none, or it is damaged, or not whole."""
    try:
        tried: dict[str, Any] = json.loads(read_regular(_path(key)))["tried"]
        times = {str(name): float(value) for name, value in tried["milliseconds"].items()}
        if not all(0 < each < float("inf") for each in times.values()):
            return None
        kept = Tried(times, dict(tried["errors"]), dict(tried["left_out"]))
        return kept if kept.is_whole else None
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return None
