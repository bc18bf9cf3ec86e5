"""BEiT: timm's `Beit` with a mask token and a head that predicts visual tokens (paper section 2, equation 2).

    patches = embed(images)                  (B, N, D)
    patches[mask] = mask_token
    features = norm(blocks([class, patches] + positions))
    logits = token_head(features[masked])    (M, V)

A forward pass of BEiT-B takes 35.1 GFLOP per image at 224 pixels; the head adds 12.6 MFLOP per masked patch. Training
computes the last block at masked patches only, which saves 1.5 GFLOP for 75 of 196.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.models.networks.blocks import Backbone, EfficientBlock

_KEEP_NORM = {"global_pool": "token", "num_classes": 0}  # timm's arguments for a model with `norm` and without a head


def timm_arguments(architecture: Architecture, drop_path: float) -> dict[str, Any]:
    """Returns the arguments of timm's `Beit`."""
    return {
        "img_size": architecture.image_size,
        "patch_size": architecture.patch_size,
        "embed_dim": architecture.width,
        "depth": architecture.depth,
        "num_heads": architecture.heads,
        "mlp_ratio": architecture.mlp_ratio,
        "init_values": architecture.layer_scale or None,
        "drop_path_rate": drop_path,
        "use_abs_pos_emb": architecture.positions == "absolute",
        "use_shared_rel_pos_bias": architecture.positions == "shared",
        "use_rel_pos_bias": architecture.positions == "per-block",
        "norm_layer": partial(LayerNorm, eps=architecture.norm_eps),
    }


class MaskedImageModel(Backbone):
    """BEiT for masked image modeling: predicts the visual tokens of masked patches.

    Args:
        outputs: V, the vocabulary size of the tokenizer.
        drop_path: Drop path rate of the last block; the rate rises linearly from 0.
        residual_dtype: dtype of the residual stream under autocast; None for fp32.
    """

    def __init__(
        self,
        architecture: Architecture,
        outputs: int,
        drop_path: float = 0.0,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(**timm_arguments(architecture, drop_path), **_KEEP_NORM)
        self.architecture: Architecture = architecture
        self.residual_dtype = residual_dtype
        self.mask_token = nn.Parameter(torch.zeros(1, 1, architecture.width))
        self.token_head = nn.Linear(architecture.width, outputs)
        init_for_pretraining(self)

    def hidden_features(
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None,
        predicted: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the output of the last block after the final norm.

        Args:
            images: (B, 3, H, W), normalized.
            mask: (B, N) bool, True where the patch is hidden; None hides nothing.
            predicted: (B, R) int64, indices of the patches to return for each image; None for all.
            uniforms: (B, 2 * depth), as in `run_blocks`.

        Returns:
            (B, R or N, D), without the class token.
        """
        hidden = self.embed_masked(images, mask)
        if predicted is None:
            return self.norm(self.run_blocks(hidden, uniforms=uniforms)[:, 1:])
        return self.norm(self.run_blocks(hidden, predicted + 1, uniforms))

    def embed_masked(self, images: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Returns the input of the first block, (B, L, D), with the mask token where `mask` (B, N) is True."""
        patches = self.embed_patches(images)
        if mask is not None:
            patches = torch.where(mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        return self.embed(patches)

    def forward(  # type: ignore[override] # takes a mask
        self,
        images: torch.Tensor,
        mask: torch.Tensor | None = None,
        predicted: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the logits of the patches to predict.

        Args:
            images: (B, 3, H, W), normalized.
            mask: (B, N) bool, True where the patch is hidden; None hides nothing and predicts every patch.
            predicted: (B, R) int64, indices of the patches to predict; saves half of the last block, and the search
                for masked patches. None predicts the hidden ones, whose number may then differ between images.
            uniforms: (B, 2 * depth), as in `run_blocks`.

        Returns:
            (M, V), image by image, in the order of `predicted`.
        """
        features = self.hidden_features(images, mask, predicted, uniforms)
        return self.token_head(rows_to_predict(features, mask, predicted))


def rows_to_predict(features: torch.Tensor, mask: torch.Tensor | None, predicted: torch.Tensor | None) -> torch.Tensor:
    """Maps (B, R or N, D) to (M, D): without `predicted`, the patches that `mask` hides; all if there is no mask."""
    features = features.flatten(0, 1)
    if predicted is None and mask is not None:
        return features.index_select(0, mask.flatten().nonzero().squeeze(1))
    return features


def init_for_pretraining(model: MaskedImageModel) -> None:
    """Initializes as in the paper: normal, std 0.02, cut at one std; outputs of block l >= 1 divided by sqrt(2 l)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            cut_normal(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in (model.cls_token, model.mask_token, model.pos_embed):
        if token is not None:
            cut_normal(token)
    rescale_outputs(model.blocks)


@torch.no_grad()
def rescale_outputs(blocks: Iterable[EfficientBlock], first: int = 1) -> None:
    """Divides the output weights of each block by sqrt(2 l), l from `first`."""
    for layer, block in enumerate(blocks, start=first):
        block.attn.proj.weight.div_(math.sqrt(2 * layer))
        block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


@torch.no_grad()
def cut_normal(tensor: torch.Tensor, std: float = 0.02) -> None:
    """Fills with a normal truncated at one std, by the inverse CDF; torch's own resamples outliers, 25 times slower."""
    reach = math.erf(1 / math.sqrt(2))
    tensor.uniform_(-reach, reach).erfinv_().mul_(std * math.sqrt(2)).clamp_(-std, std)


def forward_flops(architecture: Architecture, predicted: int, outputs: int) -> float:
    """Counts the FLOPs of the forward pass of one image: matrix products only, 2 FLOPs per multiply-add.

    Args:
        predicted: Number of patches that the head predicts.
        outputs: V, the outputs of the head.
    """
    patches, width = architecture.num_patches, architecture.width
    embed = 2 * patches * 3 * architecture.patch_size**2 * width
    return embed + architecture.depth * block_flops(architecture) + 2 * predicted * width * outputs


def block_flops(architecture: Architecture) -> float:
    """Counts the FLOPs of the forward pass of one image through one block."""
    length, width = architecture.num_patches + 1, architecture.width
    return 2 * (length * width * width * (4 + 2 * architecture.mlp_ratio) + 2 * length * length * width)
