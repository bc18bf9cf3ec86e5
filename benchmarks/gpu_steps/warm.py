"""Compiles what later steps need, while tests run: one step of each of their models, in their very shapes.

Their first steps are the cold compilations of the report, beside other work on the same cores. What does not fit is
compiled by its own step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_steps.context import Context
from gpu_steps.setups import (
    MICRO_BATCH,
    attention_choice_undone,
    make_setup,
    recorded_attention,
    timed_first_step,
)

_MEMORY_SHARES = {"large": 0.36}  # 25 GiB of an H100's 79; the others take 20 at most
_MEMORY_SHARE = 0.26


def run(context: Context) -> None:
    if context.is_cuda:  # several of these run beside the tests, which must find memory too
        torch.cuda.set_per_process_memory_fraction(_MEMORY_SHARES.get(context.step.variant, _MEMORY_SHARE))
    chosen = jobs(context)
    context.record("compiles", list(chosen))
    for name, job in chosen.items():
        with context.attempt(name), attention_choice_undone():  # or the next one's code had its tag
            start = time.perf_counter()
            found = job()
            context.wait()
            context.record(name, {**found, "seconds": time.perf_counter() - start})


def jobs(context: Context) -> dict[str, Callable[[], dict[str, Any]]]:
    """What this step compiles; with small sizes what differs from another step's."""
    variant = context.step.variant
    if variant == "others":
        return {"dalle": lambda: warm_dalle(context), "peers": lambda: warm_peers(context)}
    if variant == "residual":
        return {} if context.small else {"residual": lambda: ours(context, "base", residual="bf16")}
    return {} if context.small and variant == "base-22k" else {variant: lambda: ours(context, variant)}


def ours(context: Context, recipe: str, **settings: Any) -> dict[str, Any]:
    """Two steps: the second one has the gradients' and moments' memory as any later one."""
    micro_batch = 4 if context.small else MICRO_BATCH[recipe]
    with recorded_attention(context, recipe):
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
