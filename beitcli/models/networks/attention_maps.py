"""Computes the attention matrix of one block (paper section 3.4 and Figure 2).

    attention = softmax(q k^T / sqrt(d) + bias)     (B, heads, L, L)

Fused attention never forms this matrix. The model runs normally up to the block; a hook captures the block's normalized
input, and the matrix is computed from it. Memory: 4 * heads * L * L bytes per image, 1.9 MB for BEiT-B at 224 pixels; a
single row takes 9.5 kB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from timm.models.beit import Attention, Beit
from torch.nn.functional import linear

from beitcli.errors import UsageError
from beitcli.models.networks.efficient_attention import relative_bias
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
    block = block_index(model, layer)
    if isinstance(model, TimmViT):
        (attention,) = model.attention(images, [block])
        return _like_beit(attention, model.num_prefix_tokens, queries)
    ((hidden, shared_bias),) = _block_inputs(model, images, [block])
    return _softmax_rows(model.blocks[block].attn, hidden, shared_bias, queries)


@torch.no_grad()
def attention_by_layer(model: Beit | TimmViT, images: torch.Tensor, last: int = -1) -> Iterator[torch.Tensor]:
    """Yields the attention of every block up to `last`, each as `attention_rows` returns it, in one forward pass.

    One block's matrices exist at a time, and all blocks' normalized inputs.

    Args:
        last: Block index; negative numbers count from the end.

    Raises:
        UsageError: The model has no such block.
    """
    blocks = range(block_index(model, last) + 1)
    if isinstance(model, TimmViT):
        for attention in model.attention(images, blocks):
            yield _like_beit(attention, model.num_prefix_tokens, None)
        return
    inputs = _block_inputs(model, images, blocks)
    for block, (hidden, shared_bias) in zip(blocks, inputs, strict=True):
        yield _softmax_rows(model.blocks[block].attn, hidden, shared_bias, None)


def next_rollout(rollout: torch.Tensor | None, attention: torch.Tensor) -> torch.Tensor:
    """Returns the attention rollout up to one block further (Abnar & Zuidema, 2020, section 3).

        R_l = (0.5 mean_h A_l + 0.5 I) R_(l-1),    R_0 = I

    Args:
        rollout: (..., L, L) up to the block before; None before the first block.
        attention: (..., heads, L, L) of this block, whose rows sum to 1.

    Returns:
        (..., L, L), whose rows sum to 1.
    """
    mean = attention.mean(dim=-3)
    mixed = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return mixed if rollout is None else mixed @ rollout


_Inputs = list[tuple[torch.Tensor, torch.Tensor | None]]


def _block_inputs(model: Beit, images: torch.Tensor, blocks: Sequence[int]) -> _Inputs:
    """Returns what the attention of each block gets: (B, L, D) and the shared bias, (heads, L, L) or None."""
    caught: _Inputs = []

    def catch(module: torch.nn.Module, inputs: tuple[torch.Tensor], options: dict[str, torch.Tensor | None]) -> None:
        caught.append((inputs[0], options.get("shared_rel_pos_bias")))
        if len(caught) == len(blocks):
            raise _Caught

    hooks = [model.blocks[block].attn.register_forward_pre_hook(catch, with_kwargs=True) for block in blocks]
    try:
        model.forward_features(images)
    except _Caught:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return caught


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
    with torch.autocast(hidden.device.type, enabled=False):
        return _softmax_in_fp32(attention, hidden.float(), shared_bias, queries)


def _softmax_in_fp32(
    attention: Attention, hidden: torch.Tensor, shared_bias: torch.Tensor | None, queries: Sequence[int] | None
) -> torch.Tensor:
    query_weight, key_weight, _ = attention.qkv.weight.float().chunk(3)
    chosen = hidden if queries is None else hidden[:, list(queries)]
    query_bias = None if attention.q_bias is None else attention.q_bias.float()  # keys have none in BEiT
    query = linear(chosen, query_weight, query_bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    key = linear(hidden, key_weight).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    table = attention.relative_position_bias_table
    own_bias = None if table is None else relative_bias(table, attention.relative_position_index)
    for bias in (own_bias, shared_bias):
        if bias is not None:
            bias = bias[..., : scores.shape[-1]]
            scores = scores + (bias if queries is None else bias[..., list(queries), :]).float()
    return scores.softmax(dim=-1)
