"""A pretraining step of one recipe: eager, compiled, and what its kernels are."""

from __future__ import annotations

from typing import Any

from beitcli.runtime.compute.peak_flops import measure_matmul_flops
from gpu_steps.context import Context
from gpu_steps.profiling import profile
from gpu_steps.setups import (
    MICRO_BATCH,
    Setup,
    attention_choice,
    attention_choice_undone,
    compile_evidence,
    executed_flops,
    make_setup,
    model_flops,
    pretrain_config,
    speed,
    vocabulary,
)


def run(context: Context) -> None:
    recipe = context.step.variant
    micro_batch = 4 if context.small else MICRO_BATCH[recipe]
    config = pretrain_config(context, recipe)
    assert config.num_masked is not None
    sizes = config.architecture, config.num_masked, vocabulary(context)
    flops = {"model": model_flops(*sizes), "executed": executed_flops(*sizes)}
    context.record("gflop_an_image", {name: each / 1e9 for name, each in flops.items()})
    if not context.small or recipe == "base":  # small sizes show it once
        with context.attempt("compiled"), attention_choice_undone():
            compiled(context, recipe, micro_batch, flops)
    with context.attempt("eager"):
        measured(context, "eager", make_setup(context, recipe, micro_batch, compile_model=False), flops)


def compiled(context: Context, recipe: str, micro_batch: int, flops: dict[str, float]) -> None:
    """The compiled step, before the eager one: its numbers are the ones that matter if time runs out."""
    setup = make_setup(context, recipe, micro_batch, compile_model=True)
    context.record("attention", attention_choice(setup))
    measured(context, "compiled", setup, flops)
    with context.attempt("profile"):
        context.record("profile", profile(context, setup.step, steps=3))


def measured(context: Context, name: str, setup: Setup, flops: dict[str, float]) -> None:
    """Speed, and what share of the rate of bf16 products it is.

    Utilisation, that of the goals, is the model's FLOPs over the sustained rate of the step `rates`; `_executed` counts
    what is computed; `_here` divides by a burst of products right behind these steps, at the clock that they left.
    """
    results: dict[str, Any] = speed(context, setup)
    if name == "compiled":
        results["compile"] = compile_evidence(setup.task)
        warmed = context.earlier(f"warm-{context.step.name}").get(context.step.name, {})
        results["cold_first_step_seconds_in_warm"] = warmed.get("cold_first_step_seconds")
    context.record(name, results)
    rate = context.earlier("rates").get("square", {}).get("bf16", {}).get("tflops", {}).get("median")
    here = measure_matmul_flops(setup.compute) / 1e12
    reached = {kind: each * results["images_per_second"]["median"] / 1e12 for kind, each in flops.items()}
    results |= {"tflops": reached["model"], "tflops_executed": reached["executed"]}
    results |= {"rate_tflops": rate, "rate_here_tflops": here}
    for kind, suffix in (("model", ""), ("executed", "_executed")):
        results[f"utilisation{suffix}"] = reached[kind] / rate if rate else None
        results[f"utilisation{suffix}_here"] = reached[kind] / here
    context.record(name, results)
