"""What the device can do: matrix products, the model's own products, copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from measure import spread

from gpu_steps.context import Context
from gpu_steps.setups import record_attention_choices

MASKED, CODES = 75, 8192
# (width, images at once) of BEiT-B and BEiT-L
MODELS = {"base": (768, 256), "large": (1024, 128)}
# Seconds of products before those that count, and of those.
_SUSTAINED = {"bf16": (4.0, 1.5), "tf32": (1.0, 0.5), "fp32": (1.0, 0.5)}


def run(context: Context) -> None:
    squares(context)
    copies(context)
    if context.is_cuda:
        record_attention_choices(context)
    products: dict[str, Any] = {}
    for model, (width, images) in ({"bench": (32, 4)} if context.small else MODELS).items():
        with context.attempt(f"products of {model}"):
            products[model] = {}
            for name, shape in shapes(width, images).items():
                products[model][name] = linear_layer(context, *shape)
                context.record("products", products)


def shapes(width: int, images: int) -> dict[str, tuple[int, int, int]]:
    """(rows, in, out) of the linear layers at 224 pixels."""
    rows = images * 197
    return {
        "qkv": (rows, width, 3 * width),
        "proj": (rows, width, width),
        "fc1": (rows, width, 4 * width),
        "fc2": (rows, 4 * width, width),
        "head": (images * MASKED, width, CODES),
    }


def squares(context: Context) -> None:
    """n x n by n x n, of random numbers: zeros take less power and run faster.

    `tflops` is sustained: timed behind seconds of the same work, when a GPU's clock has come down to what its power and
    temperature allow. `burst_tflops` is of the first products.
    """
    n = 256 if context.small else 8192
    found: dict[str, Any] = {"n": n}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        with context.attempt(f"square {name}"), matmul_tf32(tf32):
            first, second = (torch.randn(n, n, device=context.device).to(dtype) for _ in range(2))
            product = torch.empty_like(first)
            multiply = partial(torch.matmul, first, second, out=product)
            burst = context.seconds_of(multiply, 5 if context.small or name == "fp32" else 10)
            warm, timed = (0.05, 0.05) if context.small else _SUSTAINED[name]
            taken = sustained(context, multiply, warm, timed)
            rates = {"tflops": taken, "burst_tflops": burst}
            found[name] = {kind: spread([2 * n**3 / each / 1e12 for each in its]) for kind, its in rates.items()}
            context.record("square", found)


def sustained(context: Context, call: Callable[[], Any], warm: float, timed: float) -> list[float]:
    """Seconds of each call, for about `timed` seconds of calls behind `warm` seconds of them."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < warm:
        for _ in range(10):
            call()
        context.wait()
        calls += 10
    each = (time.perf_counter() - start) / calls
    return context.seconds_of(call, min(2000, max(5, round(timed / each))), warmup=1)


@contextmanager
def matmul_tf32(allowed: bool) -> Iterator[None]:
    """fp32 products on the matrix units, or in true fp32; set back behind."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def linear_layer(context: Context, rows: int, columns_in: int, columns_out: int) -> dict[str, float]:
    """TFLOP/s of y = x w^T, of dx = dy w, and of dw = dy^T x, in bf16."""
    draw = lambda *shape: torch.randn(*shape, device=context.device).to(torch.bfloat16)  # noqa: E731
    x, w, dy = draw(rows, columns_in), draw(columns_out, columns_in), draw(rows, columns_out)
    flops = 2 * rows * columns_in * columns_out
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.nn.functional.linear(x, w),
        "backward_input": lambda: dy @ w,
        "backward_weight": lambda: dy.t() @ x,
    }
    result: dict[str, Any] = {"rows": rows, "in": columns_in, "out": columns_out}
    for name, call in calls.items():
        taken = context.seconds_of(call, 3 if context.small else 15, warmup=3)
        result[name] = flops / spread(taken)["median"] / 1e12
    return result


def copies(context: Context) -> None:
    """Bytes a second, in TB/s on the device (read and written), in GB/s between it and the host."""
    size = 1 << 22 if context.small else 1 << 30
    found: dict[str, Any] = {"bytes": size}
    with context.attempt("copy on the device"):
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=context.device)
        target = torch.empty_like(source)
        taken = context.seconds_of(lambda: target.copy_(source), 3 if context.small else 20)
        found["device_tb_per_second"] = spread([2 * size / seconds / 1e12 for seconds in taken])
        context.record("copies", found)
    with context.attempt("copies between host and device"):
        part = size // 4
        there = torch.empty(part, dtype=torch.uint8, device=context.device)
        pageable = torch.randint(0, 256, (part,), dtype=torch.uint8)
        hosts = {"pageable": pageable} | ({"pinned": pageable.pin_memory()} if context.is_cuda else {})
        for name, host in hosts.items():
            to_device = context.seconds_of(partial(there.copy_, host, non_blocking=True), 5)
            to_host = context.seconds_of(partial(host.copy_, there, non_blocking=True), 5)
            found[f"to_device_{name}_gb_per_second"] = spread([part / seconds / 1e9 for seconds in to_device])
            found[f"to_host_{name}_gb_per_second"] = spread([part / seconds / 1e9 for seconds in to_host])
            context.record("copies", found)
