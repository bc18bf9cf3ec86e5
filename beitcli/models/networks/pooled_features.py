"""Pooled features of each layer, for probes (paper appendix D; the pooling of iGPT, Chen et al. 2020).

    feature of layer l = mean over the patches of LayerNorm(output of block l)        (B, D)

The norm has no gain and no bias. Every layer that reads the residual stream of a pre-norm Transformer starts with such
a norm; it makes layers of different scale comparable and loses nothing that a linear head could use. Always fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from beitcli.config.architecture import Architecture


class SupportsBlockOutputs(Protocol):
    """A vision Transformer that exposes the outputs of its blocks: a BEiT or a timm model."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def num_prefix_tokens(self) -> int: ...

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None: ...


@torch.no_grad()
def pooled_features(
    model: SupportsBlockOutputs, images: torch.Tensor, layers: Sequence[int], pool: str = "mean"
) -> torch.Tensor:
    """Computes pooled features of a model in evaluation mode.

    Args:
        images: (B, 3, H, W), normalized.
        layers: Block numbers from 1.
        pool: `mean` over the patches, or the `class` token.

    Returns:
        (len(layers), B, D) float32, in the order of `layers`.
    """
    found: dict[int, torch.Tensor] = {}
    prefix = model.num_prefix_tokens

    def keep(layer: int, hidden: torch.Tensor) -> None:
        if layer in layers:
            with torch.autocast(hidden.device.type, enabled=False):
                tokens = hidden[:, prefix:] if pool == "mean" else hidden[:, :1]
                normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=model.architecture.norm_eps)
                found[layer] = normed.mean(dim=1)

    model.forward_block_outputs(images, keep)
    return torch.stack([found[layer] for layer in layers])


def weights_digest(model: nn.Module) -> str:
    """Computes the SHA-256 of names, shapes, dtypes and values of the state dict; 0.5 s for BEiT-B."""
    digest = hashlib.sha256()
    tensors: dict[str, Any] = model.state_dict()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
