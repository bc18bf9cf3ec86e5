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
_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")

_is_routed = False


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
    """Sets the library of fp32 products on the CPU, for the whole process.

    A setting that was made elsewhere is left alone while no product is routed to oneDNN here.
    """
    global _is_routed
    if library == ONEDNN:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
        _is_routed = True
    elif _is_routed:
        torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]
        _is_routed = False


def routed_matmul() -> str:
    """Returns the library that `route_matmul` has set."""
    return ONEDNN if _is_routed else TORCH


@contextmanager
def matmul_by(library: str) -> Iterator[None]:
    """Context with a library of fp32 products on the CPU."""
    before = routed_matmul()
    route_matmul(library)
    try:
        yield
    finally:
        route_matmul(before)


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
