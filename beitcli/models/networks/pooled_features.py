"""Pooled features of each layer, for probes (paper appendix D; the pooling of iGPT, Chen et al. 2020).

    mean         mean over the patches of LayerNorm(output of block l)                (B, D)
    class        LayerNorm(output of block l) of the class token                      (B, D)
    class+mean   both, side by side                                                   (B, 2 D)
    none         LayerNorm(output of block l) of each patch                           (B, N, D)

The norm has no gain and no bias. Every layer that reads the residual stream of a pre-norm Transformer starts with such
a norm; it makes layers of different scale comparable and loses nothing that a linear head could use. The release's
probe reads the output of the block without it. Always fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.errors import UsageError


class SupportsBlockOutputs(Protocol):
    """A vision Transformer that exposes the outputs of its blocks: a BEiT or a timm model."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def num_prefix_tokens(self) -> int: ...

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None: ...


@torch.no_grad()
def pooled_features(
    model: SupportsBlockOutputs, images: torch.Tensor, layers: Sequence[int], pool: str = "mean", norm: bool = True
) -> torch.Tensor:
    """Computes pooled features of a model in evaluation mode.

    Args:
        images: (B, 3, H, W), normalized.
        layers: Block numbers from 1.
        pool: `mean` over the patches, the `class` token, `class+mean`, or `none`.
        norm: Whether each token is normed before.

    Returns:
        (len(layers), B, *`feature_shape`) float32, in the order of `layers`.
    """
    found: dict[int, torch.Tensor] = {}
    prefix, eps = model.num_prefix_tokens, model.architecture.norm_eps

    def normed(tokens: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps) if norm else tokens.float()

    def keep(layer: int, hidden: torch.Tensor) -> None:
        if layer in layers:
            with torch.autocast(hidden.device.type, enabled=False):
                if pool == "none":
                    found[layer] = normed(hidden[:, prefix:])
                    return
                tokens = {"class": hidden[:, :1], "mean": hidden[:, prefix:]}
                found[layer] = torch.cat([normed(tokens[part]).mean(dim=1) for part in pool.split("+")], dim=-1)

    model.forward_block_outputs(images, keep)
    return torch.stack([found[layer] for layer in layers])


def pooled_width(architecture: Architecture, pool: str) -> int:
    """Returns the length of a pooled feature."""
    return architecture.width * len(pool.split("+"))


def feature_shape(architecture: Architecture, pool: str) -> tuple[int, ...]:
    """Returns the shape of an image's feature: (D,), (2 D,) for `class+mean`, (N, D) for `none`."""
    width = pooled_width(architecture, pool)
    return (architecture.grid[0] * architecture.grid[1], width) if pool == "none" else (width,)


def chosen_layer(layer: int, depth: int) -> int:
    """Returns the number of a block from 1; negative ones count from the last.

    Raises:
        UsageError: The model has no such block.
    """
    if not 1 <= abs(layer) <= depth:
        raise UsageError(f"--layer {layer}: the model has {depth} blocks.", f"Give 1 to {depth}, or -1 to -{depth}.")
    return layer if layer > 0 else depth + 1 + layer


def has_class_token(model: SupportsBlockOutputs) -> bool:
    """Whether the first token is a class token; some of timm's models have none, or registers only."""
    return getattr(model, "cls_token", None) is not None


def weights_digest(model: nn.Module) -> str:
    """Computes the SHA-256 of names, shapes, dtypes and values of the state dict; 0.5 s for BEiT-B."""
    digest = hashlib.sha256()
    tensors: dict[str, Any] = model.state_dict()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
