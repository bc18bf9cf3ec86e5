"""A pretraining step as the engine builds and runs it, on synthetic batches; and how fast it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import spread

from beitcli.config.architecture import SIZES, Architecture
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.plan import Plan
from beitcli.masking import make_masking
from beitcli.models.networks.beit import forward_flops
from beitcli.runtime.compute.attention_choice import AttentionChoice
from beitcli.runtime.compute.device import Compute
from gpu_steps.context import Context

CLIP = 3.0
MICRO_BATCH = {"base": 256, "base-22k": 256, "large": 128}
_SMALL = {"model": "bench", "image_size": 32, "patch_size": 8, "num_masked": 6, "min_block": 2, "drop_path": 0.1}


@dataclass
class Setup:
    """A model with its optimizer and one batch.

    Attributes:
        sums: Of the metrics of its steps so far, as the engine's step adds them up.
    """

    task: PretrainTask
    plan: Plan
    batch: dict[str, torch.Tensor]
    compute: Compute
    scaler: Any
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def step(self) -> None:
        optimizer_step(self.task, self.plan, self.batch, self.compute, self.scaler, self.sums)

    def loss_of_step(self) -> float:
        """One more step; its loss."""
        self.sums = {}
        self.step()
        return float(self.sums["loss"])


def has_setting(name: str) -> bool:
    return name in {each.name for each in fields(PretrainConfig)}


def pretrain_config(context: Context, recipe: str, **settings: Any) -> PretrainConfig:
    """A recipe's, with the model cut down where sizes are to be small."""
    flags: dict[str, Any] = {"recipe": recipe, "data": ["none"], "device": context.device.type, "precision": "bf16"}
    flags |= {"steps": 1000, "seed": context.seed, "clip": CLIP}
    if context.small:
        SIZES.setdefault("bench", {"width": 32, "depth": 2, "heads": 2})
        flags |= _SMALL
    return resolve(PretrainConfig, flags | settings, environ={}).config


def make_plan(micro_batch: int, steps: int = 1000, seed: int = 0) -> Plan:
    return Plan(
        seed=seed, images=100_000, steps=steps, batch_size=micro_batch, micro_batch=micro_batch, warmup_steps=0,
        clip=CLIP, save_every=steps, log_every=steps, keep=1, max_bad=0, data_fingerprint="",
    )  # fmt: skip


def vocabulary(context: Context) -> int:
    return 64 if context.small else 8192


def masking_of(config: PretrainConfig) -> Any:
    assert config.num_masked is not None
    return make_masking(config.masking, config.architecture.grid, config.num_masked, config.min_block)


def make_batch(config: PretrainConfig, images: int, codes: int, seed: int) -> dict[str, torch.Tensor]:
    """What the loader and the loop would give, random, on the CPU: one seed makes one batch for every device."""
    architecture = config.architecture
    generator = torch.Generator().manual_seed(seed)
    masking, rng = masking_of(config), np.random.default_rng(seed)
    masks = [masking(rng).reshape(-1) for _ in range(min(images, 64))]
    color = torch.tensor([1.2, -0.5, 0, 255, 0.9, 0.1, 4, 0, 250]).repeat(images, 1)  # gain, offset, cut; twice
    color[:, 0] += 0.2 * torch.rand(images, generator=generator) - 0.1
    shape = (images, 3, *architecture.image_size)
    batch = {
        "images": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "color": color,
        "mask": torch.from_numpy(np.stack([masks[number % len(masks)] for number in range(images)])),
        "visual_tokens": torch.randint(0, codes, (images, architecture.num_patches), generator=generator),
    }
    if config.drop_path:
        batch["uniforms"] = torch.rand(images, 2 * architecture.depth, generator=generator)
    return batch


def make_setup(
    context: Context,
    recipe: str,
    micro_batch: int,
    *,
    compile_model: bool,
    device: torch.device | None = None,
    tokenizer: Any = None,
    **settings: Any,
) -> Setup:
    """The engine's own task, as `beit pretrain --recipe RECIPE` trains it.

    Args:
        device: Default the context's.
        tokenizer: Default one that only has a vocabulary: the batch brings its tokens.
    """
    device = device or context.device
    config = pretrain_config(context, recipe, compile=compile_model, device=device.type, **settings)
    codes = vocabulary(context)
    compute = Compute(device, config.precision)
    plan = make_plan(micro_batch, seed=context.seed)
    held: Any = None
    stand_in = SimpleNamespace(downsample=config.patch_size)
    named: Any = tokenizer or SimpleNamespace(vocab_size=codes, reference="none", sha256="0" * 64, model=stand_in)
    task = PretrainTask(config, plan, named, masking_of(config), held, compute)
    task.model.train()
    batch = make_batch(config, micro_batch, codes, context.seed)
    return Setup(task, plan, {name: t.to(device) for name, t in batch.items()}, compute, compute.scaler())


def model_flops(architecture: Architecture, num_masked: int, codes: int) -> float:
    """Of one image, forward and backward, by the usual convention of MFU: three forward passes of the whole model."""
    return 3 * forward_flops(architecture, num_masked, codes)


def executed_flops(architecture: Architecture, num_masked: int, codes: int) -> float:
    """Of one image, what the engine computes: the last block at hidden patches alone, no gradient of the pixels.

    What attention's backward pass computes a second time does not count, as in `model_flops`.
    """
    width, length, mlp_ratio = architecture.width, architecture.num_patches + 1, architecture.mlp_ratio
    spared_rows = length - num_masked  # keys and values stay
    spared = 2 * spared_rows * (width * width * (2 + 2 * mlp_ratio) + 2 * length * width)
    pixels = 2 * architecture.num_patches * 3 * architecture.patch_size**2 * width
    return model_flops(architecture, num_masked, codes) - 3 * spared - pixels


def compile_evidence(task: PretrainTask) -> dict[str, Any]:
    """What is known of the compiled model after its first call."""
    from torch._dynamo.utils import counters

    return {
        "failure": getattr(task.forward, "failure", ""),
        "is_compiled": getattr(task.forward, "is_compiled", None),
        "graphs": counters["stats"].get("unique_graphs", 0),
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def from_cache() -> dict[str, int]:
    """Graphs of this process that lay in the compiler's caches, and those that did not, at both of its levels."""
    from torch._dynamo.utils import counters

    return {
        "graphs_found": counters["aot_autograd"].get("autograd_cache_hit", 0),
        "graphs_traced": counters["aot_autograd"].get("autograd_cache_miss", 0),
        "kernels_found": counters["inductor"].get("fxgraph_cache_hit", 0),
        "kernels_compiled": counters["inductor"].get("fxgraph_cache_miss", 0),
    }


def attention_choice(setup: Setup) -> dict[str, Any]:
    """What the task found at its start, and the backends that are left enabled."""
    found = setup.task.attention
    return {"enabled": sdpa_flags(), "chosen": None if found is None else found.describe()}


def sdpa_flags() -> dict[str, bool]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


@contextmanager
def attention_choice_undone() -> Iterator[None]:
    """Behind it, the process is as it was before a task inside chose its attention: the flags of SDPA and the order of
    its kernels, and the tag that tells apart what was compiled under different ones."""
    cuda, config = torch.backends.cuda, torch.compiler.config
    flags, order, tag = sdpa_flags(), torch._C._get_sdp_priority_order(), config.cache_key_tag
    try:
        yield
    finally:
        cuda.enable_flash_sdp(flags["flash"])
        cuda.enable_mem_efficient_sdp(flags["efficient"])
        cuda.enable_cudnn_sdp(flags["cudnn"])
        cuda.enable_math_sdp(flags["math"])
        torch._C._set_sdp_priority_order(order)
        config.cache_key_tag = tag


def record_attention_choices(context: Context) -> None:
    """Chooses for each recipe while nothing else runs on the device, for `recorded_attention`."""
    found = {}
    for recipe, images in MICRO_BATCH.items():
        with context.attempt(f"attention of {recipe}"), attention_choice_undone():
            choice = make_setup(context, recipe, images, compile_model=False).task.attention
            assert choice is not None
            found[recipe] = {"kernel": choice.kernel, "fallback": choice.fallback, "measured": choice.describe()}
            context.record("attention", found)


@contextmanager
def recorded_attention(context: Context, recipe: str) -> Iterator[None]:
    """Inside, a task takes the kernel that the step `rates` found: beside other work another one may win, and what is
    compiled with it serves no later step."""
    found = context.earlier("rates").get("attention", {}).get(recipe)
    if not found:
        yield
        return
    choice = AttentionChoice(found["kernel"], found["fallback"])
    with patch("beitcli.runtime.compute.attention_choice.benchmark_all", lambda shape, compute: choice):
        yield


def timed_first_step(context: Context, setup: Setup) -> tuple[float, dict[str, Any]]:
    """Its loss; and its seconds, which are those of a compilation only as far as nothing was found in the caches."""
    before, start = from_cache(), time.perf_counter()
    loss = setup.loss_of_step()
    context.wait()
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"first_step_seconds": seconds}
    if getattr(setup.task.forward, "is_compiled", False):
        found["first_step_graphs"] = {name: count - before[name] for name, count in from_cache().items()}
    return loss, found


def speed(context: Context, setup: Setup, *, steps: int | None = None) -> dict[str, Any]:
    """Images a second over whole optimizer steps, behind a warm-up; the first step apart, as it compiles."""
    steps = steps or (3 if context.small else 24)
    context.reset_peak()
    first_loss, first = timed_first_step(context, setup)
    for _ in range(0 if context.small else 4):
        setup.step()
    context.wait()
    start = time.perf_counter()
    taken = context.seconds_of(setup.step, steps, warmup=0)
    whole_seconds = time.perf_counter() - start
    images, last_loss = setup.plan.micro_batch, setup.loss_of_step()
    return {
        "micro_batch": images,
        "images_per_second": spread([images / seconds for seconds in taken]),
        "images_per_second_whole": images * steps / whole_seconds,
        "step_ms": spread([1000 * seconds for seconds in taken]),
        **first,
        "peak_gib": context.peak_gib(),
        "first_loss": first_loss,
        "last_loss": last_loss,
        "skipped_steps": float(setup.sums["skipped_steps"]),
        "median_ms": 1000 * statistics.median(taken),
    }
