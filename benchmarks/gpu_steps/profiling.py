"""Where a step's time goes, by kind of kernel, from torch.profiler's trace."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from gpu_steps.context import Context

_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_TOP = 25
# The first kind with a pattern in the kernel's name: attention's own products and casts are not taken for plain ones.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("memcpy", ("memcpy", "memset")),
    ("attention", ("fmha", "flash", "sdpa", "attention", "convert_dq", "dot_do_o")),
    ("optimizer", ("multi_tensor_apply", "adam", "foreach")),
    ("cross entropy", ("nll", "cross_entropy", "log_softmax", "argmax")),
    ("convolution", (r"(\b|_)conv(?!ert)", "dgrad", "wgrad", "fprop", "implicit", "im2col", "nchw", "nhwc")),
    ("gemm", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "addmm", "matmul", "::mm", "::bmm")),
    ("norm and elementwise", ("triton_", "layer_norm", "layernorm", "elementwise", "reduce", "gelu", "softmax")),
    ("rows", ("index", "gather", "scatter", "cat", "copy")),
)
_TRITON = ("cross entropy", "norm and elementwise")


def group_of(kernel: str) -> str:
    """Of what Inductor wrote in Triton, names tell every operator near it: only templates are products."""
    name = kernel.lower()
    if name.startswith("triton_tem"):
        return "attention" if "attention" in name else "gemm"
    kinds = [pair for pair in GROUPS if not name.startswith("triton_") or pair[0] in _TRITON]
    return next((group for group, patterns in kinds if any(re.search(each, name) for each in patterns)), "other")


def profile(context: Context, step: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Milliseconds a step of each kind of kernel, the dearest kernels, and the share of the time without any.

    On a CPU the same of torch's operators, without what they call.
    """
    step()
    context.wait()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.is_cuda else [])
    with torch_profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        context.wait()
    if context.is_cuda:
        path = context.scratch / f"trace-{context.step.name}.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
        path.unlink()
        spans = [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") in _ON_DEVICE and "dur" in e]
        return summary(spans, steps)
    averages = profiler.key_averages()
    spans = [(each.key, 0.0, each.self_cpu_time_total / each.count) for each in averages for _ in range(each.count)]
    return summary(spans, steps) | {"idle_share": None}


def summary(spans: list[tuple[str, float, float]], steps: int) -> dict[str, Any]:
    """What a trace's (name, start, microseconds) come to."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, _, duration in spans:
        by_name[name].append(duration)
    groups: dict[str, float] = defaultdict(float)
    for name, durations in by_name.items():
        groups[group_of(name)] += sum(durations) / 1000 / steps
    dearest = sorted(by_name.items(), key=lambda pair: -sum(pair[1]))[:_TOP]
    return {
        "steps": steps,
        "groups_ms": dict(sorted(groups.items(), key=lambda pair: -pair[1])),
        "kernels_a_step": len(spans) / steps,
        "top": [
            {"name": name[:160], "group": group_of(name), "ms": sum(d) / 1000 / steps, "calls": len(d) / steps}
            for name, d in dearest
        ],
        "idle_share": idle_share(spans),
    }


def idle_share(spans: list[tuple[str, float, float]]) -> float:
    """Of the time from the first kernel's start to the last one's end, what no kernel covers."""
    ordered = sorted((start, start + duration) for _, start, duration in spans)
    if not ordered or ordered[-1][1] <= ordered[0][0]:
        return 0.0
    covered, reach = 0.0, ordered[0][0]
    for begin, end in ordered:
        covered += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    return 1 - covered / (reach - ordered[0][0])
