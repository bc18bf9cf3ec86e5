"""Which steps there are, in order: a cut at any moment leaves the results that matter most (stdlib only).

The steps of one group run at the same time, since none of them measures speed. `warm-*` fill the compiler's cache for
the steps behind them meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        module: In `gpu_steps`; its `run(context)` is called.
        limit: Seconds after which its process group is killed.
        expected: Seconds that it should take on an H100; an estimate.
        least: Seconds that must be left for it to be started at all.
        variant: Passed to the module, where one module serves several steps.
    """

    name: str
    module: str
    title: str
    limit: float
    expected: float
    least: float = 10
    variant: str = ""


SCHEDULE: tuple[tuple[Step, ...], ...] = (
    (Step("environment", "environment", "Machine and versions", 60, 8),),
    (Step("rates", "rates", "Matrix products and copies", 45, 18),),
    (
        Step("warm-base", "warm", "Compiler's cache: base", 140, 60, 30, "base"),
        Step("warm-large", "warm", "Compiler's cache: large", 140, 95, 30, "large"),
        Step("warm-base-22k", "warm", "Compiler's cache: base-22k", 140, 60, 30, "base-22k"),
        Step("warm-residual", "warm", "Compiler's cache: bf16 residual", 140, 60, 30, "residual"),
        Step("warm-others", "warm", "Compiler's cache: DALL-E, peers", 140, 130, 30, "others"),
        Step("tests", "gpu_tests", "tests/gpu", 200, 110, 20),
        Step("parity", "parity", "Loss and gradients against the CPU", 120, 60),
        Step("nccl", "nccl", "NCCL, DDP, FSDP2 with one process", 140, 70),
    ),
    (Step("base", "training", "BEiT-B step", 160, 35, 15, "base"),),
    (Step("large", "training", "BEiT-L step", 200, 45, 15, "large"),),
    (Step("base-22k", "training", "BEiT-B step, shared relative position bias", 110, 30, 15, "base-22k"),),
    (Step("checkpoint", "checkpointing", "Stall of a checkpoint", 40, 15),),
    (Step("attention", "attention", "Attention kernels", 60, 30),),
    (Step("residual", "residual", "bf16 residual stream", 110, 40, 15),),
    (Step("loader", "loading", "Loader, and training from JPEGs", 130, 65, 20),),
    (Step("dalle", "dalle", "DALL-E's encoder", 80, 35, 15),),
    (Step("peers", "peers", "transformers and timm", 130, 50, 20),),
    (Step("commands", "commands", "Every command on the device", 200, 100, 20),),
    (Step("sizes", "sizes", "BEiT-B, other micro-batches", 90, 60, 30),),
)

STEPS = tuple(step for group in SCHEDULE for step in group)
NAMES = tuple(step.name for step in STEPS)


def groups_to_run(only: set[str], skip: set[str], *, one_at_a_time: bool) -> list[list[Step]]:
    """The groups with the steps that are asked for.

    Args:
        only: Empty for all.
        one_at_a_time: On a CPU, where steps beside each other would share its cores.
    """
    chosen = [
        [step for step in group if (not only or step.name in only) and step.name not in skip] for group in SCHEDULE
    ]
    if one_at_a_time:
        return [[step] for group in chosen for step in group]
    return [group for group in chosen if group]
