"""Fused attention with a relative position bias.

    out = softmax(query key^T / sqrt(d) + bias) value        (B, heads, R, d), R = L unless only some rows are needed

Kernels: the backends of `F.scaled_dot_product_attention` and, with a bias, FlexAttention. What they support:

- flash: no bias.
- efficient (memory-efficient): bias and its gradient. Each stride of the bias but the last, which is 1, must be a
  multiple of 8 elements, or torch pads and copies the bias in each call. `padded_bias` pads it once.
- cudnn: no gradient of a bias; lengths not divisible by 128 need a version above 9.15.0.
- math: everything, in fp32 with (B, heads, R, L) matrices.
- flex: bias and its gradient, by atomic additions (so the order of the sums varies); only if compiled.

`attention_choice.py` selects one of them on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

FLEX = "flex"
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

_ALIGNMENT = 8

FLEX_OPTIONS: dict[str, Any] = {
    # The decoding kernel, which torch prefers below 128 queries, is for inference.
    "FORCE_USE_FLEX_ATTENTION": True,
    # Each stage holds a block of the fp32 bias: torch's default, 3 stages of 128 x 128, needs 240 KiB of shared memory
    # where an H100 has 227. These need 24, and were the fastest of six sets on an H200 (docs/performance.md).
    "fwd_BLOCK_M": 64,
    "fwd_BLOCK_N": 32,
    "fwd_num_stages": 2,
    "bwd_BLOCK_M1": 32,
    "bwd_BLOCK_N1": 64,
    "bwd_BLOCK_M2": 64,
    "bwd_BLOCK_N2": 32,
    "bwd_num_stages": 2,
    "bwd_num_warps": 4,
}


def padded_bias(bias: torch.Tensor) -> torch.Tensor:
    """Pads the rows of (heads, L, L) with zeros to a multiple of 8 elements; `attention` reads the first L."""
    missing = -bias.shape[-1] % _ALIGNMENT
    return F.pad(bias, (0, missing)) if missing else bias


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None = None,
    queries: torch.Tensor | None = None,
    *,
    use_flex: bool = False,
) -> torch.Tensor:
    """Computes softmax(query key^T / sqrt(d) + bias) value.

    Args:
        query: (B, heads, R, d).
        key: (B, heads, L, d), like `value`.
        bias: (heads, L, L or more), of any floating-point dtype; columns from L on are ignored.
        queries: (B, R) int64, the rows of the bias that belong to the queries; None if R = L.
        use_flex: Use FlexAttention while gradients are recorded, if there is a bias.

    Returns:
        (B, heads, R, d).
    """
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value)
    if use_flex and torch.is_grad_enabled():
        from torch.nn.attention.flex_attention import flex_attention  # a second, with what it imports

        attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        return attend(query, key, value, score_mod=score_mod(bias, queries), kernel_options=dict(FLEX_OPTIONS))
    mask = attention_mask(bias, queries, query.dtype, key.shape[-2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attention_mask(bias: torch.Tensor, queries: torch.Tensor | None, dtype: torch.dtype, length: int) -> torch.Tensor:
    """Returns what `scaled_dot_product_attention` adds to the scores: (1, heads, L, L), broadcast over the batch.

    Rows that differ by image need (B, heads, R, L): one gather in `dtype`, and as many bytes again for the gradient.
    Strides are those of `bias`, so that a padded one stays aligned.
    """
    mask = bias.to(dtype)
    if queries is None:
        mask = mask.unsqueeze(0)
    else:  # F.embedding, because its backward may sum in fp32; that of indexing sums in `dtype`
        rows = F.embedding(queries, mask.transpose(0, 1).flatten(1))
        mask = rows.unflatten(-1, (len(bias), -1)).transpose(1, 2)
    return mask if mask.shape[-1] == length else mask[..., :length]


def score_mod(bias: torch.Tensor, queries: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """Returns FlexAttention's `score_mod` that adds the bias; shapes are those of `attention`."""

    def add(score: torch.Tensor, batch: Any, head: Any, row: Any, column: Any) -> torch.Tensor:
        return score + bias[head, row, column]

    def add_to_rows(score: torch.Tensor, batch: Any, head: Any, row: Any, column: Any) -> torch.Tensor:
        assert queries is not None
        return score + bias[head, queries[batch, row], column]

    return add if queries is None else add_to_rows


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    """Compiles FlexAttention for an eager model: uncompiled, it materializes the matrices that it is meant to avoid."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
