"""What a CPU can compute matrix products with: libraries of fp32 products, units for bf16.

torch multiplies fp32 matrices on a CPU by its default library (MKL on x86), which takes a slow path on processors that
are not Intel's. `torch.backends.mkldnn.matmul.fp32_precision = "bf16"` hands them to oneDNN instead, which may then
round factors to bf16. Without AMX it has no kernel that does, and computes in fp32, at twice MKL's rate on AMD's Zen 4;
with AMX, and on Arm, it rounds. `tf32` acts on processors with AMX-FP16 only, `ieee` and `none` leave MKL. So
`arithmetic_trial.py` measures what this processor makes of it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

TORCH, ONEDNN = "torch", "onednn"
_SWITCH = {TORCH: "ieee", ONEDNN: "bf16"}  # "none" would be whatever torch.backends.mkldnn.fp32_precision is
_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclass
class _Routing:
    """What is set now, for the whole process.

    Attributes:
        library: None while the process's own setting holds.
        own: That setting, kept while a library is set.
        contexts: Number of `matmul_by` that are entered.
    """

    library: str | None = None
    own: str = "none"
    contexts: int = 0


_routing = _Routing()


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of training steps on a CPU.

    Attributes:
        precision: fp32 or bf16.
        matmul: Library of fp32 products, `TORCH` or `ONEDNN`.
        about: Both in words, with the measurement behind them, for display.
        note: What the user should know; empty for nothing.
    """

    precision: str = "fp32"
    matmul: str = TORCH
    about: str = ""
    note: str = ""


def route_matmul(library: str) -> None:
    """Sets the library of fp32 products on the CPU, for the whole process, until the end of the `matmul_by` around it.

    Outside of any, `TORCH` means the setting that the process had before anything was routed here.
    """
    if library == TORCH and not _routing.contexts:
        _unroute()
    else:
        _set(library)


def routed_matmul() -> str:
    """Returns the library that `route_matmul` or `matmul_by` has set; `TORCH` if neither has."""
    return _routing.library or TORCH


@contextmanager
def matmul_by(library: str) -> Iterator[None]:
    """Context with a library of fp32 products on the CPU, whatever the process's own setting, which holds again after.

    Does nothing within a function that torch.compile traces: it refuses the switch.
    """
    if torch.compiler.is_compiling():
        yield
        return
    before = _routing.library
    _routing.contexts += 1
    try:
        _set(library)
        yield
    finally:
        _routing.contexts -= 1
        _unroute() if before is None else _set(before)


def _set(library: str) -> None:
    if _routing.library == library:
        return
    if _routing.library is None:
        _routing.own = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    torch.backends.mkldnn.matmul.fp32_precision = _SWITCH[library]  # type: ignore[attr-defined]
    _routing.library = library


def _unroute() -> None:
    """Puts the process's own setting back."""
    if _routing.library is not None:
        torch.backends.mkldnn.matmul.fp32_precision = _routing.own  # type: ignore[attr-defined]
        _routing.library = None


def has_onednn_route() -> bool:
    """Whether torch can hand fp32 products of this CPU to oneDNN: on x86 with AVX-512.

    On Arm the same switch rounds to bf16, so it is not even tried there.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and torch.backends.mkldnn.is_available() and bool(_capabilities().get("avx512_f"))


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bf16 itself; elsewhere it is emulated, at a tenth of the rate of fp32."""
    return torch.backends.mkldnn.is_available() and any(_capabilities().get(name) for name in _BF16_UNITS)


def processor_identity() -> list[str]:
    """Returns what tells processors apart whose products differ in speed."""
    return [platform.machine(), *sorted(f"{name}={value}" for name, value in _capabilities().items() if value)]


def _capabilities() -> dict[str, object]:
    """Returns the CPU's features by torch's names; empty where torch does not tell them."""
    try:
        return dict(torch.cpu.get_capabilities())
    except Exception:  # unknown hardware, or a torch without it
        return {}
