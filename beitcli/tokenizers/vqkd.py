"""VQ-KD's network: images to unit vectors, codes, and a teacher's features of the patches (BEiT v2, arXiv 2208.06366).

    z = norm(tanh_mlp(encoder(images)))                  (B, h, w, C), on the unit sphere
    k = argmax_j z . e_j
    features = tanh_mlp(decoder(z_q))                    (B, N, T), compared with the teacher's

Encoder and decoder are vision Transformers with a class token and absolute positions; the decoder's patches are the
codes. Only encoder, its task layer and the codebook are needed for tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from beitcli.config.architecture import Architecture
from beitcli.errors import UsageError
from beitcli.models.checkpoints.resize_positions import resize_positions
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone
from beitcli.runtime.compute.device import tf32_disabled
from beitcli.tokenizers.base import Precision, to_unit
from beitcli.tokenizers.codebook_objective import CodebookModel
from beitcli.tokenizers.mixed_precision import DTYPES
from beitcli.tokenizers.vector_quantizer import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VQKDArchitecture:
    """The shape of a `VQKD`.

    Attributes:
        vocab_size: V.
        code_width: C.
        grid: Patches along each side of the training images, to which the positions belong.
        patch_size: Side of a patch in pixels.
        width, depth, heads: Of the encoder; the decoder has `decoder_depth` such blocks.
        target_width: T, the width of the teacher's features; 0 for a network without a decoder.
    """

    vocab_size: int
    code_width: int
    grid: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_depth: int = 1
    target_width: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "target_width" else 1
            if type(value) is not int or value < least:
                raise UsageError(f"The tokenizer's {name} is {value!r}.", f"Give a whole number from {least}.")

    def transformer(self, patch_size: int, depth: int) -> Architecture:
        side = self.grid * patch_size
        return Architecture(
            image_size=(side, side), patch_size=patch_size, width=self.width, depth=depth, heads=self.heads
        )


class PatchTransformer(Backbone):
    """A vision Transformer that returns the patches after the last norm; other grids than its own resize positions."""

    def __init__(self, architecture: Architecture, channels: int = 3) -> None:
        super().__init__(**timm_arguments(architecture, 0.0), in_chans=channels, global_pool="avg", num_classes=0)
        self.grid = architecture.grid
        for block in self.blocks:  # not in checkpoints, so never on the meta device
            block.attn.k_bias = torch.zeros(architecture.width, device="cpu")

    def forward(self, images: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """(B, channels, H, W) to (B, h * w, D)."""
        maps = self.patch_embed.proj(images)
        positions = resize_positions(self.pos_embed, self.grid, tuple(maps.shape[2:]))
        hidden = torch.cat((self.cls_token.expand(len(maps), -1, -1), maps.flatten(2).mT), dim=1) + positions
        return self.fc_norm(self.run_blocks(hidden)[:, 1:])


class VQKD(CodebookModel):
    """Encoder, codebook and, where there is a teacher, decoder; images are (B, 3, H, W) in [-1, 1].

    Attributes:
        encoder_dtype: Of the encoder's autocast in `encode`, as the release's pretraining has it; None for fp32.
    """

    precisions = ("fp32", "bf16", "fp16")
    encoder_dtype: torch.dtype | None = None
    no_decoder_hint = (
        "VQ-KD's decoder predicts a teacher's features, not pixels; a dvae or vq tokenizer makes pictures."
    )

    def __init__(self, architecture: VQKDArchitecture) -> None:
        super().__init__()
        shape = self.architecture = architecture
        self.vocab_size, self.downsample = shape.vocab_size, shape.patch_size
        self.encoder = PatchTransformer(shape.transformer(shape.patch_size, shape.depth))
        self.encode_task_layer = _task_layer(shape.width, shape.code_width)
        self.quantizer = VectorQuantizer(shape.vocab_size, shape.code_width, cosine=True)
        if shape.target_width:
            self.decoder = PatchTransformer(shape.transformer(1, shape.decoder_depth), shape.code_width)
            self.decode_task_layer = _task_layer(shape.width, shape.target_width)

    def no_weight_decay(self) -> set[str]:
        return {f"{part}.{name}" for part in ("encoder", "decoder") for name in ("cls_token", "pos_embed")}

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 or [0, 1] to [-1, 1], as the release does."""
        return 2 * to_unit(images) - 1

    def vectors(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, h, w, C), before normalization; the task layer computes in fp32."""
        features = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            vectors = self.encode_task_layer(features.float())
        return vectors.unflatten(1, (images.shape[2] // self.downsample, images.shape[3] // self.downsample))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The nearest code of each patch: (B, 3, H, W) in [-1, 1] to (B, h * w) int64 in [0, V)."""
        low = torch.autocast(images.device.type, self.encoder_dtype, enabled=self.encoder_dtype is not None)
        with tf32_disabled(images.device):
            with low:
                vectors = self.vectors(images)
            return self.quantizer.nearest(vectors).flatten(1)

    def in_precision(self, precision: Precision) -> VQKD:
        if precision == "fp32":
            return self
        other = copy.copy(self)  # with the same tensors
        other.encoder_dtype = DTYPES[precision]
        return other

    def features_of(self, quantized: Tensor) -> Tensor:
        """Codes' vectors (B, h, w, C) to the features that the decoder predicts, (B, h * w, T)."""
        return self.decode_task_layer(self.decoder(quantized.permute(0, 3, 1, 2)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors (B, h, w, C), codes (B, h, w), predicted features (B, N, T), and the quantizer's mean |z - e|^2."""
        vectors = self.vectors(images)
        with torch.autocast(images.device.type, enabled=False):
            quantized, codes, distance = self.quantizer(vectors)
        return vectors, codes, self.features_of(quantized), distance


def _task_layer(width: int, outputs: int) -> nn.Sequential:
    layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))
    for linear in (layer[0], layer[2]):
        trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    return layer


def build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> VQKD:
    """A network with fresh weights; see `TokenizerKind.build`."""
    shape = VQKDArchitecture(**architecture)
    if stored is not None and shape.depth + shape.decoder_depth > len(stored):  # before as many blocks are built
        raise ValueError(f"{shape.depth} and {shape.decoder_depth} blocks")
    return VQKD(shape)
