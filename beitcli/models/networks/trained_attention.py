"""timm's attention where it is trained: some rows of each image only, and the kernel that suits the device.

    softmax(query key^T / sqrt(d) + bias) value         (B, heads, R, d)

Attention that is differentiated on a CPU multiplies its matrices out: a fused kernel gives no gradient of a bias, and
torch's substitute for it computes in fp32 and looks for rows that see nothing (docs/performance.md has metrics).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.beit import Attention
from torch import nn

from beitcli.runtime.compute.sdpa_backend import attention, padded_bias

_SHORT = 256  # positions up to which a matrix of them costs less than a fused kernel's second pass


class TrainedAttention(Attention):
    """timm's attention; `queries` narrows it to some rows of each image.

    Args:
        attention: timm's, whose parameters, buffers and sub-modules it takes over with their names.

    Attributes:
        use_flex: Whether FlexAttention adds the bias in training; set before anything is compiled.
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
        """What each query gathers from all positions.

        Args:
            hidden: (B, L, D), the block's normalised input.
            shared_rel_pos_bias: (heads, L, L or more), or None; columns from L on are not read.
            queries: (B, R) int64 positions in [0, L); None for all.

        Returns:
            (B, R or L, D).
        """
        query, key, value = self._projections(hidden, queries)
        unsharded = _weighted(query, key, value, self._bias(shared_rel_pos_bias), queries, use_flex=self.use_flex)
        return self.proj(unsharded.transpose(1, 2).flatten(2))

    def _projections(
        self, hidden: torch.Tensor, queries: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, heads, R or L, d) queries, and (B, heads, L, d) keys and values."""
        weight, bias = self.qkv.weight, None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if queries is None:
            heads = F.linear(hidden, weight, bias).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            query, key, value = heads.unbind(0)
            return query, key, value
        width = len(weight) // 3
        biases = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(take_rows(hidden, queries), weight[:width], biases[0])
        key, value = F.linear(hidden, weight[width:], biases[1]).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _bias(self, shared: torch.Tensor | None) -> torch.Tensor | None:
        """(heads, L, L); on CUDA padded."""
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()[0]
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
    """softmax(query key^T / sqrt(d) + bias) value, (B, heads, R, d); arguments as of `attention`."""
    length = key.shape[-2]
    if query.device.type != "cpu" or not torch.is_grad_enabled() or (bias is None and length > _SHORT):
        return attention(query, key, value, bias, queries, use_flex=use_flex)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        bias = bias if bias.shape[-1] == length else bias[..., :length]
        if queries is not None:
            bias = bias.transpose(0, 1)[queries].transpose(1, 2)  # (B, heads, R, L)
        scores = scores + bias.to(query.dtype)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def take_rows(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, L, D) at (B, R) positions: (B, R, D)."""
    first = torch.arange(len(rows), device=rows.device).unsqueeze(1) * hidden.shape[1]
    return hidden.flatten(0, 1).index_select(0, (rows + first).flatten()).view(*rows.shape, -1)


def disable_flex(model: nn.Module) -> list[TrainedAttention]:
    """Leaves attention to the other kernel that was chosen; FlexAttention is worth nothing where it is not compiled.

    Returns:
        The attention modules that had used it.
    """
    modules = [module for module in model.modules() if isinstance(module, TrainedAttention) and module.use_flex]
    for module in modules:
        module.use_flex = False
    return modules
