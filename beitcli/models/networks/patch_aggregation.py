"""Patch aggregation: pretraining that also trains the class token (BEiT v2, arXiv 2208.06366, section 2.4).

    hidden = blocks([class, patches] + positions)                        (B, L, D), after every block
    aggregated = extra_blocks([class of the last block, patches of block `after`])
    logits = token_head(norm(hidden[masked])), token_head(norm(aggregated[masked]))        (M, V) each

The patches of the earlier block carry too little to name what is hidden, so the class token has to. The extra blocks
are of pretraining only. Their names are the release's: `cls_pt_layers`, and `cls_pt_norm` and `cls_pt_lm_head` if they
do not share the norm and head of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Block
from torch import nn

from beitcli.config.architecture import Aggregation, Architecture
from beitcli.models.networks.beit import (
    MaskedImageModel,
    block_flops,
    cut_normal,
    rescale_outputs,
    rows_to_predict,
    timm_arguments,
)
from beitcli.models.networks.blocks import EfficientBlock


class PatchAggregationModel(MaskedImageModel):
    """BEiT for masked image modeling with patch aggregation; apart from `forward`, a `MaskedImageModel`.

    Args:
        architecture, outputs, drop_path, residual_dtype: As of `MaskedImageModel`.
        aggregation: Its `after` is a block before the last.

    Attributes:
        cls_pt_layers: The extra blocks, numbered on from `after`: drop path and initial scale are of those numbers.
    """

    def __init__(
        self,
        architecture: Architecture,
        outputs: int,
        aggregation: Aggregation,
        drop_path: float = 0.0,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(architecture, outputs, drop_path, residual_dtype)
        self.aggregation = aggregation
        arguments = timm_arguments(architecture, drop_path)
        first, end = aggregation.after, aggregation.after + aggregation.blocks
        rates = torch.linspace(0, drop_path, max(architecture.depth, end), device="cpu").tolist()[first:end]
        self.cls_pt_layers = nn.ModuleList(_block(arguments, rate) for rate in rates)
        rescale_outputs(self.cls_pt_layers, first=first + 1)  # type: ignore[arg-type] # a ModuleList types its items
        self.cls_pt_norm: nn.Module | None = None
        self.cls_pt_lm_head: nn.Linear | None = None
        if aggregation.head == "own":
            self.cls_pt_norm = arguments["norm_layer"](architecture.width)
            self.cls_pt_lm_head = nn.Linear(architecture.width, outputs)
            cut_normal(self.cls_pt_lm_head.weight)
            nn.init.zeros_(self.cls_pt_lm_head.bias)

    def all_blocks(self) -> list[Any]:
        return [*self.blocks, *self.cls_pt_layers]

    def forward(  # type: ignore[override] # two predictions
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None = None,
        predicted: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the logits of the patches to predict, of the last block and of the extra blocks, (M, V) each.

        Args:
            images, mask, predicted: As of `MaskedImageModel`.
            uniforms: (B, 2 * (depth + extra blocks)), as in `run_blocks`; the extra blocks' come last.
        """
        norm = self.norm if self.cls_pt_norm is None else self.cls_pt_norm
        head = self.token_head if self.cls_pt_lm_head is None else self.cls_pt_lm_head
        hidden, aggregated = self.run_both(self.embed_masked(images, mask), predicted, uniforms)
        last = rows_to_predict(self.norm(hidden), mask, predicted)
        return self.token_head(last), head(rows_to_predict(norm(aggregated), mask, predicted))

    def run_both(
        self, hidden: torch.Tensor, predicted: torch.Tensor | None, uniforms: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs all blocks; returns patches of the last block and of the last extra one, (B, R or N, D), without norm.

        The last block computes the class token and the patches to predict, the last extra block only the latter.

        Args:
            hidden: (B, L, D), the class token and the embedded patches.
            predicted: (B, R) int64, indices of patches; None for all.
        """
        bias, depth = self.shared_bias(), len(self.blocks)
        drawn = [None] * len(self.all_blocks()) if uniforms is None else uniforms.split(2, dim=1)
        rows = None if predicted is None else predicted + 1
        patches = hidden
        for number, block in enumerate(self.blocks, start=1):
            queries = None
            if number == depth and rows is not None:
                queries = torch.cat((torch.zeros_like(rows[:, :1]), rows), dim=1)
            hidden = block(hidden, bias, queries, drawn[number - 1])
            if number == self.aggregation.after:
                patches = hidden[:, 1:]
        aggregated = torch.cat((hidden[:, :1], patches), dim=1)
        for number, block in enumerate(self.cls_pt_layers, start=1):
            queries = rows if number == self.aggregation.blocks else None
            aggregated = block(aggregated, bias, queries, drawn[depth + number - 1])
        return hidden[:, 1:], aggregated[:, 1:] if rows is None else aggregated


def _block(arguments: dict[str, Any], drop_path: float) -> EfficientBlock:
    """Returns a block of the backbone's shape with torch's initial weights, which the release leaves here as they are.

    It initializes the network before it adds these blocks.
    """
    names = {"dim": "embed_dim", "num_heads": "num_heads", "mlp_ratio": "mlp_ratio", "init_values": "init_values"}
    shape = {name: arguments[of_beit] for name, of_beit in names.items()}
    return EfficientBlock(Block(**shape, qkv_bias=True, norm_layer=arguments["norm_layer"], drop_path=drop_path))


def aggregation_flops(architecture: Architecture, aggregation: Aggregation, predicted: int, outputs: int) -> float:
    """Counts the FLOPs of the aggregation for one image, beside `forward_flops` and with its arguments."""
    return aggregation.blocks * block_flops(architecture) + 2 * predicted * architecture.width * outputs
