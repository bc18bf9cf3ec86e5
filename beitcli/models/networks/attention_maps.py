"""Computes the attention matrix of one block (paper section 3.4 and Figure 2).

    attention = softmax(q k^T / sqrt(d) + bias)     (B, heads, L, L)

Fused attention never forms this matrix. The model runs normally up to the block; a hook captures the block's normalized
input, and the matrix is computed from it. Memory: 4 * heads * L * L bytes per image, 1.9 MB for BEiT-B at 224 pixels; a
single row takes 9.5 kB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.beit import Attention, Beit
from torch.nn.functional import linear

from beitcli.errors import UsageError
from beitcli.models.networks.timm_vit import TimmViT


class _Caught(Exception):
    """Stops the forward pass: the blocks after the captured one are not needed."""


def block_index(model: Beit | TimmViT, layer: int) -> int:
    """Converts a layer number to an index from 0; negative numbers count from the end.

    Raises:
        UsageError: The model has no such block.
    """
    depth = len(model.blocks)
    if not -depth <= layer < depth:
        raise UsageError(
            f"--layer {layer}: the model has {depth} blocks.",
            f"Give 0 to {depth - 1}, or -1 to -{depth} from the last one back.",
        )
    return layer % depth


@torch.no_grad()
def attention_rows(
    model: Beit | TimmViT, images: torch.Tensor, layer: int = -1, queries: Sequence[int] | None = None
) -> torch.Tensor:
    """Returns the attention of the given queries in one block, for a model in evaluation mode.

    Args:
        model: The prefix tokens of a timm model (class, distillation, registers) are merged into one: as a query it is
            the first of them, as a key the sum over all of them. A model without prefix tokens gets zeros there.
        images: (B, 3, H, W), normalized; nothing is masked.
        layer: Block index from 0; negative numbers count from the end.
        queries: R positions in [0, L), 0 for the class token and 1 + n for patch n; None for all.

    Returns:
        (B, heads, R or L, L) float32; the last axis sums to 1.

    Raises:
        UsageError: The model has no such block.
    """
    if isinstance(model, TimmViT):
        return _like_beit(model.attention(images, block_index(model, layer)), model.num_prefix_tokens, queries)
    attention = model.blocks[block_index(model, layer)].attn
    caught: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def catch(module: torch.nn.Module, inputs: tuple[torch.Tensor], options: dict[str, torch.Tensor | None]) -> None:
        caught.append((inputs[0], options.get("shared_rel_pos_bias")))
        raise _Caught

    hook = attention.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.forward_features(images)
    except _Caught:
        pass
    finally:
        hook.remove()
    hidden, shared_bias = caught[0]
    with torch.autocast(images.device.type, enabled=False):
        return _softmax_rows(attention, hidden.float(), shared_bias, queries)


def _like_beit(attention: torch.Tensor, prefix: int, queries: Sequence[int] | None) -> torch.Tensor:
    """Merges the prefix tokens: (B, heads, prefix + N, prefix + N) -> (B, heads, R or 1 + N, 1 + N)."""
    shares = torch.cat((attention[..., :prefix].sum(dim=-1, keepdim=True), attention[..., prefix:]), dim=-1)
    first = shares[..., :1, :] if prefix else torch.zeros_like(shares[..., :1, :])
    rows = torch.cat((first, shares[..., prefix:, :]), dim=-2)
    return rows if queries is None else rows[..., list(queries), :]


def _softmax_rows(
    attention: Attention, hidden: torch.Tensor, shared_bias: torch.Tensor | None, queries: Sequence[int] | None
) -> torch.Tensor:
    """Computes softmax(q k^T / sqrt(d) + bias) in float32.

    Args:
        hidden: (B, L, D), the block's normalized input.
        shared_bias: (heads, L, L), or None.

    Returns:
        (B, heads, R or L, L).
    """
    query_weight, key_weight, _ = attention.qkv.weight.float().chunk(3)
    chosen = hidden if queries is None else hidden[:, list(queries)]
    query_bias = None if attention.q_bias is None else attention.q_bias.float()  # keys have none in BEiT
    query = linear(chosen, query_weight, query_bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    key = linear(hidden, key_weight).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    own_bias = attention._get_rel_pos_bias() if attention.relative_position_bias_table is not None else None
    for bias in (own_bias, shared_bias):
        if bias is not None:
            bias = bias[..., : scores.shape[-1]]
            scores = scores + (bias if queries is None else bias[..., list(queries), :]).float()
    return scores.softmax(dim=-1)
