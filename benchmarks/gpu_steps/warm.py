"""Compiles what later steps need, while tests run: one step of each of their models, in their very shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_steps.context import Context
from gpu_steps.setups import MICRO_BATCH, has_setting, make_setup

_MEMORY_SHARE = 0.4


def run(context: Context) -> None:
    base, large, shared = (4 if context.small else MICRO_BATCH[recipe] for recipe in ("base", "large", "base-22k"))
    jobs: dict[str, Callable[[], object]]
    if context.step.variant == "base":
        jobs = {"base": lambda: ours(context, "base", base)}
        if has_setting("residual"):
            jobs["residual"] = lambda: ours(context, "base", base, residual="bf16")
        jobs["base-22k"] = lambda: ours(context, "base-22k", shared)
    else:
        jobs = {"large": lambda: ours(context, "large", large), "peers": lambda: warm_peers(context)}
        jobs["dalle"] = lambda: warm_dalle(context)
    if context.is_cuda:  # two of these run beside the tests, which must find memory too
        torch.cuda.set_per_process_memory_fraction(_MEMORY_SHARE)
    for name, job in jobs.items():
        with context.attempt(name):
            start = time.perf_counter()
            job()
            context.wait()
            context.record(name, {"seconds": time.perf_counter() - start})


def ours(context: Context, recipe: str, micro_batch: int, **settings: Any) -> None:
    """Two steps: the second one has the gradients' and moments' memory as any later one."""
    setup = make_setup(context, recipe, micro_batch, compile_model=True, **settings)
    for _ in range(2):
        setup.step()


def warm_peers(context: Context) -> None:
    from gpu_steps.peers import PEERS, peer_step

    for name in PEERS:
        with context.attempt(name):
            peer_step(context, name, compiled=True)()
            context.wait()


def warm_dalle(context: Context) -> None:
    from gpu_steps.dalle import SIZES, compiled, random_tokenizer

    _, side, groups = SIZES["small" if context.small else "full"]
    compiled(context, random_tokenizer(context, groups).in_precision("fp16"), side)
