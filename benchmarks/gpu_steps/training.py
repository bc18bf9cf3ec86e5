"""A pretraining step of one recipe: eager, compiled, and what its kernels are."""

from __future__ import annotations

from typing import Any

from beitcli.runtime.matrix_rate import matrix_rate
from gpu_steps.context import Context
from gpu_steps.profiling import profile
from gpu_steps.setups import (
    MICRO_BATCH,
    Setup,
    attention_choice,
    compile_evidence,
    make_setup,
    pretrain_config,
    speed,
    step_flops,
    vocabulary,
)


def run(context: Context) -> None:
    recipe = context.step.variant
    micro_batch = 4 if context.small else MICRO_BATCH[recipe]
    config = pretrain_config(context, recipe)
    assert config.num_masked is not None
    flops = step_flops(config.architecture, config.num_masked, vocabulary(context))
    context.record("gflop_an_image", flops / 1e9)
    with context.attempt("eager"):
        measured(context, "eager", make_setup(context, recipe, micro_batch, compile_model=False), flops)
    if context.small and recipe != "base":
        return  # shown once already
    with context.attempt("compiled"):
        setup = make_setup(context, recipe, micro_batch, compile_model=True)
        measured(context, "compiled", setup, flops)
        with context.attempt("profile"):
            context.record("profile", profile(context, setup.step, steps=3))
        context.record("attention", attention_choice(setup))  # last: another choice would be compiled anew


def measured(context: Context, name: str, setup: Setup, flops: float) -> None:
    """Speed, and how much of the matrix rate it is; the rate is measured right behind, at the same clock."""
    results: dict[str, Any] = speed(context, setup)
    if name != "eager":
        results["compile"] = compile_evidence(setup.task)
    context.record(name, results)
    rate = context.earlier("rates").get("square", {}).get("bf16", {}).get("tflops", {}).get("median", 0) * 1e12
    reached = flops * results["images_per_second"]["median"]
    results |= {"tflops": reached / 1e12, "rate_here_tflops": matrix_rate(setup.compute) / 1e12}
    results["utilisation"] = reached / rate if rate else reached / 1e12 / results["rate_here_tflops"]
    context.record(name, results)
