"""torch's attention kernels on BEiT's shapes: milliseconds forward and backward, and error against fp32.

A bias is added in two forms. `padded` is the engine's, from `runtime/compute/sdpa_backend.py`: rows of 200 elements, of
which 197 are read. `plain` is (heads, 197, 197), as one would write it; torch copies it into a padded one inside each
call of the memory-efficient kernel. FlexAttention reads single elements, so it is tried with the engine's form alone,
and only there does the engine use it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from beitcli.runtime.compute.device import allow_tf32
from beitcli.runtime.compute.sdpa_backend import FLEX, SDPA, attention, padded_bias
from gpu_steps.context import Context
from gpu_steps.setups import attention_choice, attention_choice_undone, make_setup

Sizes = tuple[int, int, int, int]
# name: heads, length, width of a head, images
SHAPES: dict[str, Sizes] = {"base": (12, 197, 64, 256), "large": (16, 197, 64, 128)}
BACKENDS: dict[str, SDPBackend | None] = {**SDPA, "default": None}
BIASES = ("none", "padded", "plain")
_REFERENCE_IMAGES = 32  # at once, whose scores are (32, heads, L, L) in fp32
Attend = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def run(context: Context) -> None:
    if context.is_cuda:
        allow_tf32(False)  # in the reference
    rows: list[dict[str, Any]] = []
    shapes = {"bench": (2, 17, 16, 4)} if context.small else SHAPES
    for shape, bias, kernel in product(shapes, BIASES, BACKENDS):
        add_row(context, rows, kernel, shape, shapes[shape], bias)
    recipes = {"base": 4} if context.small else {"base": 256, "base-22k": 256, "large": 128}
    for recipe, images in recipes.items():
        with context.attempt(f"chosen for {recipe}"), attention_choice_undone():
            chosen = attention_choice(make_setup(context, recipe, images, compile_model=False))
            context.record(f"chosen for {recipe}", chosen)
    for shape in shapes:  # last: it is compiled
        add_row(context, rows, FLEX, shape, shapes[shape], "padded")


def add_row(
    context: Context, rows: list[dict[str, Any]], kernel: str, shape: str, sizes: Sizes, bias_form: str
) -> None:
    """One kernel on one shape; why it does not run, where it does not."""
    row: dict[str, Any] = {"kernel": kernel, "shape": shape, "bias": bias_form}
    try:
        row |= measured(context, kernel, sizes, bias_form)
    except Exception as error:  # most kernels do not take everything, and say so with a RuntimeError
        row["note"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
        error.__traceback__ = None
    context.free()
    rows.append(row)
    context.record("kernels", rows)


def measured(context: Context, kernel: str, sizes: Sizes, bias_form: str) -> dict[str, Any]:
    """The errors of the whole batch, and the time."""
    attend = flex(context) if kernel == FLEX else sdpa(BACKENDS[kernel], padded=bias_form == "padded")
    packed, bias, gradient = drawn(context, sizes, has_bias=bias_form != "none")
    own = passes(attend, packed, bias, gradient)
    errors = [difference(a, b) for a, b in zip(own, reference_passes(packed, bias, gradient), strict=True)]
    row: dict[str, Any] = {
        "error": errors[0],
        "gradient_error": max(errors[1:]),
        "finite": all(bool(t.isfinite().all()) for t in own),
    }
    del own
    taken = context.seconds_of(lambda: passes(attend, packed, bias, gradient), 3 if context.small else 20, warmup=3)
    heads, length, width, images = sizes
    flops = images * heads * length * length * width * 4 * 3.5  # two products forward, five backward
    middle = sorted(taken)[len(taken) // 2]
    return row | {"ms": 1000 * middle, "tflops": flops / middle / 1e12}


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """||value - reference|| / ||reference||, on the device."""
    return float(torch.linalg.vector_norm(value.float() - reference) / torch.linalg.vector_norm(reference))


def drawn(context: Context, sizes: Sizes, *, has_bias: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """bf16 (B, L, 3, heads, d) projections, fp32 (heads, L, L) bias, bf16 (B, heads, L, d) gradient of the result."""
    heads, length, width, images = sizes
    generator = torch.Generator(context.device).manual_seed(context.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=context.device, generator=generator)

    packed = normal(images, length, 3, heads, width).bfloat16()
    bias = normal(heads, length, length) if has_bias else None
    return packed, bias, normal(images, heads, length, width).bfloat16()


def passes(
    attend: Attend, packed: torch.Tensor, bias: torch.Tensor | None, gradient: torch.Tensor
) -> list[torch.Tensor]:
    """The result, and the gradients of the projections and of the bias."""
    packed = packed.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()
    out = attend(packed, bias)
    return [out.detach(), *torch.autograd.grad(out, [packed] if bias is None else [packed, bias], gradient)]


def reference_passes(packed: torch.Tensor, bias: torch.Tensor | None, gradient: torch.Tensor) -> list[torch.Tensor]:
    """`passes` in fp32 by the math kernel, some images at a time; the gradient of the bias is the sum over them."""
    attend = sdpa(SDPBackend.MATH, padded=False)
    pieces = zip(packed.split(_REFERENCE_IMAGES), gradient.split(_REFERENCE_IMAGES), strict=True)
    found = [passes(attend, few.float(), bias, its.float()) for few, its in pieces]
    joined = [torch.cat([each[place] for each in found]) for place in (0, 1)]
    return joined if bias is None else [*joined, torch.stack([each[2] for each in found]).sum(dim=0)]


def unpacked(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def sdpa(backend: SDPBackend | None, *, padded: bool) -> Attend:
    """scaled_dot_product_attention, restricted to `backend` or as torch chooses.

    Args:
        padded: The engine's form of the bias, not the plain one.
    """

    def attend(packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        with sdpa_kernel(backend) if backend is not None else nullcontext():
            if bias is not None and padded:
                return attention(*unpacked(packed), padded_bias(bias))
            mask = None if bias is None else bias.to(packed.dtype).unsqueeze(0)
            return F.scaled_dot_product_attention(*unpacked(packed), attn_mask=mask)

    return attend


def flex(context: Context) -> Attend:
    """The engine's FlexAttention, compiled for one shape."""

    def attend(packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert bias is not None
        return attention(*unpacked(packed), padded_bias(bias), use_flex=True)

    if not context.is_cuda:
        raise NotImplementedError("flex_attention trains on CUDA alone")
    return torch.compile(attend, dynamic=False, fullgraph=True)
