"""torch's attention kernels on BEiT's shapes: milliseconds forward and backward, and error against fp32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_steps.context import Context, relative_error
from gpu_steps.setups import attention_choice, make_setup

# name: heads, length, width of a head, images
SHAPES = {"base": (12, 197, 64, 256), "large": (16, 197, 64, 128)}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
    "default": None,
    "flex": None,
}
_CHECKED = 8  # images that the error is taken of
Attend = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def run(context: Context) -> None:
    rows: list[dict[str, Any]] = []
    kernels(context, [name for name in KERNELS if name != "flex"], rows)
    recipes = {"base": 4} if context.small else {"base": 256, "base-22k": 256, "large": 128}
    for recipe, images in recipes.items():  # behind the kernels: a choice changes what "default" is
        with context.attempt(f"chosen for {recipe}"):
            chosen = attention_choice(make_setup(context, recipe, images, compile_model=False))
            context.record(f"chosen for {recipe}", chosen)
    kernels(context, ["flex"], rows)  # last: it is compiled


def kernels(context: Context, names: list[str], rows: list[dict[str, Any]]) -> None:
    """Appends a row for each kernel, shape, with and without a bias."""
    shapes = {"bench": (2, 17, 16, 4)} if context.small else SHAPES
    for kernel, shape, has_bias in product(names, shapes, (False, True)):
        row: dict[str, Any] = {"kernel": kernel, "shape": shape, "bias": has_bias}
        try:
            row |= measured(context, kernel, shapes[shape], has_bias)
        except Exception as error:  # most kernels do not take everything, and say so with a RuntimeError
            row["note"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
            error.__traceback__ = None
        context.free()
        rows.append(row)
        context.record("kernels", rows)


def measured(context: Context, kernel: str, shape: tuple[int, int, int, int], has_bias: bool) -> dict[str, Any]:
    attend = flex(context) if kernel == "flex" else sdpa(kernel)
    heads, length, width, images = shape
    few = drawn(context, heads, length, width, min(images, _CHECKED), has_bias)
    packed, bias, gradient = few
    own = passes(attend, *few)
    reference = passes(sdpa("math"), packed.float(), None if bias is None else bias.float(), gradient.float())
    errors = [relative_error(a, b) for a, b in zip(own, reference, strict=True)]
    row: dict[str, Any] = {
        "error": errors[0],
        "gradient_error": max(errors[1:]),
        "finite": all(bool(t.isfinite().all()) for t in own),
    }
    many = drawn(context, heads, length, width, images, has_bias)
    taken = context.seconds_of(lambda: passes(attend, *many), 3 if context.small else 20, warmup=3)
    flops = images * heads * length * length * width * 4 * 3.5  # two products forward, five backward
    middle = sorted(taken)[len(taken) // 2]
    return row | {"ms": 1000 * middle, "tflops": flops / middle / 1e12}


def drawn(
    context: Context, heads: int, length: int, width: int, images: int, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Packed (B, L, 3, heads, d) projections, (heads, L, L) bias, and (B, heads, L, d) gradient of the result; bf16."""
    generator = torch.Generator(context.device).manual_seed(context.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=context.device, generator=generator).to(torch.bfloat16)

    packed = normal(images, length, 3, heads, width)
    bias = normal(heads, length, length) if has_bias else None
    return packed, bias, normal(images, heads, length, width)


def passes(
    attend: Attend, packed: torch.Tensor, bias: torch.Tensor | None, gradient: torch.Tensor
) -> list[torch.Tensor]:
    """The result, and the gradients of the projections and of the bias."""
    packed = packed.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()
    out = attend(packed, bias)
    return [out, *torch.autograd.grad(out, [packed] if bias is None else [packed, bias], gradient)]


def unpacked(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def sdpa(kernel: str) -> Attend:
    backend = KERNELS[kernel]

    def attend(packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        mask = None if bias is None else bias.expand(len(packed), -1, -1, -1)
        with sdpa_kernel(backend) if backend is not None else nullcontext():
            return F.scaled_dot_product_attention(*unpacked(packed), attn_mask=mask)

    return attend


def flex(context: Context) -> Attend:
    """flex_attention, whose bias is a score_mod; compiled on CUDA, which is how it is meant to be run."""
    from torch.nn.attention.flex_attention import flex_attention

    def plain(packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if bias is None:
            return flex_attention(*unpacked(packed))

        def add_bias(
            score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
        ) -> torch.Tensor:
            return score + bias[h, q, k]

        return flex_attention(*unpacked(packed), score_mod=add_bias)

    if not context.is_cuda:
        raise NotImplementedError("flex_attention trains on CUDA alone")
    return torch.compile(plain)
