"""timm's attention for training: optional query selection, and the kernel that suits the device.

    softmax(query key^T / sqrt(d) + bias) value         (B, heads, R, d)

With gradients on the CPU, attention is computed unfused: the fused kernel has no gradient for a bias, and torch's
fallback computes in fp32 and searches for fully masked rows (measurements in docs/performance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.beit import Attention
from torch import nn

from beitcli.runtime.compute.sdpa_backend import attention, padded_bias

_SHORT = 256  # tokens up to which the full matrix costs less than a fused kernel's second pass


class EfficientAttention(Attention):
    """timm's attention; `queries` selects the rows of each image to compute.

    Args:
        attention: timm's module; its parameters, buffers and submodules are reused under the same names.

    Attributes:
        use_flex: Whether training uses FlexAttention to add the bias; set it before compiling.
    """

    use_flex: bool = False

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(attention))

    def forward(
        self,
        hidden: torch.Tensor,
        shared_rel_pos_bias: torch.Tensor | None = None,
        queries: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the attention output of each query.

        Args:
            hidden: (B, L, D), the block's normalized input.
            shared_rel_pos_bias: (heads, L, L or more), or None; columns from L on are padding.
            queries: (B, R) int64 positions in [0, L); None for all.

        Returns:
            (B, R or L, D).
        """
        query, key, value = self._projections(hidden, queries)
        attended = _weighted(query, key, value, self._bias(shared_rel_pos_bias), queries, use_flex=self.use_flex)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _projections(
        self, hidden: torch.Tensor, queries: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries (B, heads, R or L, d), and keys and values (B, heads, L, d)."""
        weight, bias = self.qkv.weight, None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if queries is None:
            heads = F.linear(hidden, weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key, value = heads.unbind(0)
            return query, key, value
        width = len(weight) // 3
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(gather_rows(hidden, queries), weight[:width], biases[0])
        key, value = F.linear(hidden, weight[width:], biases[1]).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _bias(self, shared: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the bias (heads, L, L), padded on CUDA; None if there is none."""
        if self.relative_position_bias_table is not None:
            own = relative_bias(self.relative_position_bias_table, self.relative_position_index)
            shared = own if shared is None else own + shared[..., : own.shape[-1]]
        return padded_bias(shared) if shared is not None and shared.is_cuda else shared


def _weighted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    queries: torch.Tensor | None = None,
    *,
    use_flex: bool = False,
) -> torch.Tensor:
    """Computes softmax(query key^T / sqrt(d) + bias) value, (B, heads, R, d); arguments as in `attention`."""
    length = key.shape[-2]
    if query.device.type != "cpu" or not torch.is_grad_enabled() or (bias is None and length > _SHORT):
        return attention(query, key, value, bias, queries, use_flex=use_flex)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        bias = bias if bias.shape[-1] == length else bias[..., :length]
        if queries is not None:
            rows = F.embedding(queries, bias.transpose(0, 1).flatten(1))  # half the time of indexing, the same numbers
            bias = rows.unflatten(-1, (len(bias), -1)).transpose(1, 2)  # (B, heads, R, L)
        scores = scores + bias.to(query.dtype)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def relative_bias(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns the bias (heads, L, L) of a table (N, heads) and the rows (L, L) of it that pairs of tokens take.

    As timm's, to the last bit. On a CPU columns are selected, which takes a sixth of the time of indexing with a copy
    behind it; on CUDA that would add gradients in any order.
    """
    if table.device.type == "cpu":
        return table.t().contiguous().index_select(1, index.flatten()).view(-1, *index.shape)
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def gather_rows(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Gathers (B, L, D) at (B, R) positions: (B, R, D)."""
    first = torch.arange(len(rows), device=rows.device).unsqueeze(1) * hidden.shape[1]
    return hidden.flatten(0, 1).index_select(0, (rows + first).flatten()).view(*rows.shape, -1)


def disable_flex(model: nn.Module) -> list[EfficientAttention]:
    """Turns FlexAttention off, which is of no use without torch.compile; the other chosen kernel is used instead.

    Returns:
        The attention modules that used it.
    """
    modules = [module for module in model.modules() if isinstance(module, EfficientAttention) and module.use_flex]
    for module in modules:
        module.use_flex = False
    return modules
