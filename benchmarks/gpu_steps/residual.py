"""The residual stream in bf16 instead of fp32, where the engine has the setting: speed, and the loss over 200 steps."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from gpu_steps.context import Context
from gpu_steps.setups import MICRO_BATCH, attention_choice_undone, compile_evidence, has_setting, make_setup, speed

_STEPS, _TAIL = 200, 50
_LEVELS = 32


def run(context: Context) -> None:
    if not has_setting("residual"):
        context.record("note", "PretrainConfig has no setting `residual`")
        return
    steps = 6 if context.small else _STEPS
    losses: dict[str, list[float]] = {}
    with context.attempt("loss"):
        for residual in ("fp32", "bf16"):
            losses[residual] = curve(context, residual, steps)
        context.record("loss", difference(losses))
    for residual in ("bf16",) if context.small else ("fp32", "bf16"):
        with context.attempt(residual), attention_choice_undone():
            images = 4 if context.small else MICRO_BATCH["base"]
            setup = make_setup(context, "base", images, compile_model=True, residual=residual)
            context.record(residual, speed(context, setup) | {"compile": compile_evidence(setup.task)})


def difference(losses: dict[str, list[float]]) -> dict[str, Any]:
    ends = {name: statistics.mean(values[-_TAIL:]) for name, values in losses.items()}
    apart = [abs(a - b) for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    return {
        "steps": len(apart),
        "first_loss": losses["fp32"][0],
        "end_fp32": ends["fp32"],
        "end_bf16": ends["bf16"],
        "end_difference": abs(ends["bf16"] - ends["fp32"]),
        "largest_difference": max(apart),
        "curves": losses,
    }


def curve(context: Context, residual: str, steps: int) -> list[float]:
    """Losses of a small model that learns the brightness of hidden patches of smooth images."""
    recipe, images = ("base", 4) if context.small else ("small", 64)
    setup = make_setup(context, recipe, images, compile_model=False, residual=residual)
    sums = []
    for number in range(steps):
        setup.batch |= smooth_batch(setup.batch, setup.task.config.patch_size, context.seed + number)
        setup.sums = {}
        setup.step()
        sums.append(setup.sums["loss"])
    return torch.stack(sums).tolist()


def smooth_batch(batch: dict[str, torch.Tensor], patch: int, seed: int) -> dict[str, torch.Tensor]:
    """Images of low frequencies, and tokens that are their patches' levels of grey."""
    images = batch["images"]
    generator = torch.Generator(images.device).manual_seed(seed)
    low = torch.rand(len(images), 1, 4, 4, generator=generator, device=images.device)
    grey = torch.nn.functional.interpolate(low, size=images.shape[2:], mode="bilinear", align_corners=False)
    levels = torch.nn.functional.avg_pool2d(grey, patch).flatten(1)
    return {
        "images": (grey * 255).to(torch.uint8).expand_as(images).contiguous(),
        "visual_tokens": (levels * (_LEVELS - 1)).long(),
    }
