"""Compiles what later steps need, while tests run: one step of each of their models, in their very shapes.

Their first steps are the cold compilations of the report, beside other work on the same cores. What matters most is
compiled first; what does not fit is compiled by its own step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_steps.context import Context
from gpu_steps.setups import MICRO_BATCH, attention_choice_undone, has_setting, make_setup, timed_first_step

_MEMORY_SHARE = 0.4


def run(context: Context) -> None:
    base, large, shared = (4 if context.small else MICRO_BATCH[recipe] for recipe in ("base", "large", "base-22k"))
    jobs: dict[str, Callable[[], dict[str, Any]]]
    if context.step.variant == "base":
        jobs = {"base": lambda: ours(context, "base", base)}
        if not context.small:
            jobs["base-22k"] = lambda: ours(context, "base-22k", shared)
        if not context.small and has_setting("residual"):
            jobs["residual"] = lambda: ours(context, "base", base, residual="bf16")
    else:
        jobs = {"large": lambda: ours(context, "large", large), "dalle": lambda: warm_dalle(context)}
        jobs["peers"] = lambda: warm_peers(context)
    if context.is_cuda:  # two of these run beside the tests, which must find memory too
        torch.cuda.set_per_process_memory_fraction(_MEMORY_SHARE)
    for name, job in jobs.items():
        with context.attempt(name), attention_choice_undone():  # or the next one's code had its tag
            start = time.perf_counter()
            found = job()
            context.wait()
            context.record(name, {**found, "seconds": time.perf_counter() - start})


def ours(context: Context, recipe: str, micro_batch: int, **settings: Any) -> dict[str, Any]:
    """Two steps: the second one has the gradients' and moments' memory as any later one."""
    setup = make_setup(context, recipe, micro_batch, compile_model=True, **settings)
    _, found = timed_first_step(context, setup)
    setup.step()
    return {"cold_first_step_seconds": found["first_step_seconds"], **found.get("first_step_graphs", {})}


def warm_peers(context: Context) -> dict[str, Any]:
    from gpu_steps.peers import PEERS, peer_step

    for name in PEERS[-1:] if context.small else PEERS:
        with context.attempt(name):
            peer_step(context, name, compiled=True)()
            context.wait()
    return {}


def warm_dalle(context: Context) -> dict[str, Any]:
    from gpu_steps.dalle import SIZES, compiled, random_tokenizer

    _, side, groups = SIZES["small" if context.small else "full"]
    compiled(random_tokenizer(context, groups).in_precision("fp16"), side)
    return {}
