"""Selects the attention kernel for training on CUDA by a benchmark. All ranks use the same kernel; the log reports it.

The backend of `scaled_dot_product_attention` is a global flag that a compiled graph reads when it is traced, so the
kernel must be selected before the first compiled call. Without CUDA nothing is benchmarked or changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from beitcli.runtime.compute.attention_trial import AttentionShape, benchmark_kernels, reason
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.sdpa_backend import FLEX, SDPA

_CUDNN_ANY_LENGTH = 91501  # 9.15.1


@dataclass(frozen=True)
class AttentionChoice:
    """The selected attention kernel, and the measurements behind it.

    Attributes:
        kernel: A key of `SDPA`, or `FLEX`; None if no kernel passed: torch then chooses among all but cuDNN.
        fallback: The fastest key of `SDPA`, used where FlexAttention is not, as without gradients.
        images: Batch size of the benchmark.
        milliseconds: Forward and backward time of all blocks' attention, by kernel.
        errors: Largest relative error of the output and the gradients against fp32, by kernel.
        left_out: The reason, by excluded kernel; "trial" if nothing could be measured.
    """

    kernel: str | None
    fallback: str | None = None
    images: int = 0
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Returns one line for the log."""
        ranked = sorted(self.milliseconds, key=lambda kernel: self.milliseconds[kernel])
        measured = [
            f"{kernel} {self.milliseconds[kernel]:.3g} ms (error {self.errors[kernel]:.1g})" for kernel in ranked
        ]
        parts = [f"Attention kernel: {self.kernel or 'as torch chooses, without cuDNN'}"]
        if measured:
            parts.append(f"{', '.join(measured)} for {self.images} images, forward and backward")
        if self.left_out:
            parts.append(f"left out: {', '.join(f'{name} ({why})' for name, why in self.left_out.items())}")
        return "; ".join(parts) + "."


def candidates(has_bias: bool, cudnn_version: int | None, processes: int = 1) -> tuple[list[str], dict[str, str]]:
    """Returns the kernels to benchmark, and the reason for each excluded kernel.

    Args:
        has_bias: Whether attention has a trained bias.
        cudnn_version: `torch.backends.cudnn.version()`: 91500 is 9.15.0.
        processes: World size.
    """
    left_out = {}
    if has_bias:
        left_out = {"flash": "takes no bias", "cudnn": "gives no gradient of a bias"}
        if processes > 1:  # DDP splits a compiled graph
            left_out[FLEX] = "unproved with several processes"
    else:
        left_out[FLEX] = "no bias to add"
        if cudnn_version is None or cudnn_version < _CUDNN_ANY_LENGTH:
            left_out["cudnn"] = f"version {cudnn_version} is not above 91500"
    return [kernel for kernel in (*SDPA, FLEX) if kernel not in left_out], left_out


def choose_attention_kernel(shape: AttentionShape, compute: Compute) -> AttentionChoice:
    """Benchmarks the kernels on rank 0 and applies the fastest one on all ranks; on CUDA only.

    The caller sets `use_flex` if the result is `FLEX`. All ranks must call this, before anything is compiled.
    """
    choice = compute.world.run_on_rank_zero(lambda: benchmark_all(shape, compute))
    apply_choice(choice)
    return choice


def apply_choice(choice: AttentionChoice) -> None:
    """Sets torch's global flags; inputs that the selected backend does not support use `efficient`, else `math`.

    Such are those in fp32, as of a teacher, beside a model in bf16. torch's own order of backends may have `math`
    before cuDNN, so it is set too, where torch can.

    A compiled graph contains the kernel that the flags allowed when it was traced, but the flags are not part of the
    key of torch's on-disk cache of compiled graphs. The tag is: without it a run could load a graph with another run's
    kernel.
    """
    cuda = torch.backends.cuda
    if choice.fallback is None:
        torch.compiler.config.cache_key_tag = "sdpa:None"
        cuda.enable_cudnn_sdp(False)
        return
    order = {"math": ["math"], "efficient": ["efficient", "math"]}.get(
        choice.fallback, [choice.fallback, "efficient", "math"]
    )
    set_order = getattr(torch._C, "_set_sdp_priority_order", None)
    if set_order is not None:
        rest = [name for name in SDPA if name not in order]
        set_order([int(SDPA[name]) for name in (*order, *rest)])  # type: ignore[call-overload] # its stub has no __int__
    elif choice.fallback == "cudnn":  # `efficient` may come before it
        order.remove("efficient")
    torch.compiler.config.cache_key_tag = f"sdpa:{','.join(order)}"
    cuda.enable_flash_sdp("flash" in order)
    cuda.enable_mem_efficient_sdp("efficient" in order)
    cuda.enable_cudnn_sdp("cudnn" in order)
    cuda.enable_math_sdp("math" in order)


def benchmark_all(shape: AttentionShape, compute: Compute) -> AttentionChoice:
    """Runs the benchmark, with fewer images if memory is short. Never raises, because the other ranks wait."""
    kernels, left_out = candidates(shape.has_bias, torch.backends.cudnn.version(), compute.world.size)
    try:
        while True:
            try:
                tried = benchmark_kernels(kernels, shape, compute.dtype, compute.device)
                break
            except torch.OutOfMemoryError:
                if shape.images == 1:
                    raise
                shape = replace(shape, images=shape.images // 2)
    except Exception as error:  # a failed benchmark must not end the run
        return AttentionChoice(None, left_out={**left_out, "trial": reason(error)})
    finally:
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
    ranked = sorted(tried.milliseconds, key=lambda kernel: tried.milliseconds[kernel])
    return AttentionChoice(
        kernel=next(iter(ranked), None),
        fallback=next((kernel for kernel in ranked if kernel in SDPA), None),
        images=shape.images,
        milliseconds=tried.milliseconds,
        errors=tried.errors,
        left_out={**left_out, **tried.left_out},
    )
