"""DALL-E's encoder at full size with random weights, in each precision: images a second, and whose tokens agree.

What is fp32 in the fp16 and bf16 encoders, a fifth of the arithmetic, is TF32 on CUDA; the rows with fp32 sums show
what that gains and costs. `Tokenizer.encode` keeps TF32 out of the fp32 encoder whatever the flags say; the row `tf32`
calls it without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import spread

from beitcli.runtime.compute.device import allow_tf32
from beitcli.tokenizers.base import Tokenizer, to_unit
from beitcli.tokenizers.dalle import Half, build
from beitcli.tokenizers.dvae_network import DVAEArchitecture, Encoder
from gpu_steps.context import Context

SIZES = {"full": (256, 112, 4), "small": (2, 16, 2)}  # images at once, their side, groups of the encoder
_GFLOP = 52.0  # of encoding 112 x 112 pixels
Encode = Callable[[torch.Tensor], torch.Tensor]


def run(context: Context) -> None:
    images, side, groups = SIZES["small" if context.small else "full"]
    tokenizer = random_tokenizer(context, groups)
    pixels = smooth_images(images, side, context.seed).to(context.device)
    context.record("parameters", sum(p.numel() for p in tokenizer.model.parameters()))
    reference: list[torch.Tensor] = []
    fp16 = tokenizer.in_precision("fp16")
    encoders: dict[str, Callable[[], Encode]] = {
        "fp32": lambda: tokenizer.encode,
        "tf32": lambda: in_tf32(tokenizer),
        "fp16 compiled": lambda: compiled(fp16, side).encode,
        "fp16": lambda: fp16.encode,
        "bf16": lambda: tokenizer.in_precision("bf16").encode,
        "fp16, fp32 sums": lambda: without_tf32(fp16).encode,
        "bf16 compiled": lambda: compiled(tokenizer.in_precision("bf16"), side).encode,
        "fp16 compiled, fp32 sums": lambda: compiled(without_tf32(fp16), side).encode,
    }
    for name, make in encoders.items():
        with context.attempt(name):
            context.record(name, encoding(context, make(), pixels, reference))


def encoding(context: Context, encode: Encode, pixels: torch.Tensor, reference: list[torch.Tensor]) -> dict[str, Any]:
    """Speed and tokens; the first call's tokens become the reference."""
    tokens = encode(pixels).cpu()
    if not reference:
        reference.append(tokens)
    context.reset_peak()
    taken = context.seconds_of(lambda: encode(pixels), 2 if context.small else 8)
    rates = [len(pixels) / seconds for seconds in taken]
    return {
        "images_per_second": spread(rates),
        "tflops": None if context.small else spread(rates)["median"] * _GFLOP / 1e3,
        "agreement": float((tokens == reference[0]).float().mean()),
        "codes": len(tokens.unique()),
        "peak_gib": context.peak_gib(),
    }


def in_tf32(tokenizer: Tokenizer) -> Encode:
    """As `Tokenizer.encode`, what is fp32 in it in TF32."""

    @torch.no_grad()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with tf32():
            return tokenizer.model.token_logits(to_unit(pixels)).argmax(dim=1).flatten(1)

    return encode


def without_tf32(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose fp32 part is IEEE fp32."""
    model: Any = tokenizer.model
    strict = model.with_encoder(model.encoder)
    strict.allows_tf32 = False
    return replace(tokenizer, model=strict)


def compiled(tokenizer: Tokenizer, side: int) -> Tokenizer:
    quick, failure = tokenizer.compiled((side, side))
    if failure:
        raise RuntimeError(failure)
    return quick


@contextmanager
def tf32() -> Iterator[None]:
    allow_tf32(True)
    try:
        yield
    finally:
        allow_tf32(False)


def random_tokenizer(context: Context, groups: int = 4) -> Tokenizer:
    """The encoder alone, at DALL-E's size; on the device, frozen."""
    sizes = {"vocab_size": 64, "width": 16, "blocks_per_group": 1} if context.small else {}
    architecture = DVAEArchitecture(**sizes, groups=groups, init_gain=2**0.5)
    torch.manual_seed(context.seed)
    with torch.device(context.device):
        encoder = Encoder(architecture)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                torch.nn.init.zeros_(module.bias)
    model = build(Half(Path("random"), "encoder", architecture, dict(encoder.state_dict())), None)
    model.requires_grad_(False).eval().to(context.device)
    return Tokenizer("random", model, 14 * model.downsample, "0" * 64)


def smooth_images(images: int, side: int, seed: int) -> torch.Tensor:
    """(images, 3, side, side) uint8, of low frequencies and a little grain."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, 3, max(2, side // 8), max(2, side // 8), generator=generator)
    enlarged = torch.nn.functional.interpolate(low, size=(side, side), mode="bicubic")
    grain = 0.05 * torch.randn(enlarged.shape, generator=generator)
    return ((enlarged + grain).clamp(0, 1) * 255).to(torch.uint8)
