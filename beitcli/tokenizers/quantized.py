"""The dVAE's encoder and decoder about a quantizer: images to vectors, codes, vectors, images (VQ-VAE, FSQ)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.runtime.compute.device import tf32_disabled
from beitcli.tokenizers.codebook_objective import CodebookModel
from beitcli.tokenizers.dvae_loss import map_pixels, unmap_pixels
from beitcli.tokenizers.dvae_network import Decoder, DVAEArchitecture, Encoder, initialize


@dataclass(frozen=True, kw_only=True)
class QuantizedArchitecture:
    """The shape of a `QuantizedVAE`.

    Attributes:
        vocab_size: V.
        code_width: D, the numbers of a vector that is quantized.
    """

    vocab_size: int
    code_width: int
    width: int
    groups: int
    blocks_per_group: int
    decoder_init_width: int = 128
    output_channels: int = 3

    @property
    def networks(self) -> DVAEArchitecture:
        """Of encoder and decoder, whose logits are the vectors."""
        return DVAEArchitecture(
            vocab_size=self.code_width,
            width=self.width,
            groups=self.groups,
            blocks_per_group=self.blocks_per_group,
            decoder_init_width=self.decoder_init_width,
            init_gain=2**0.5,
            output_channels=self.output_channels,
        )


def architecture_of(config: TrainTokenizerConfig, code_width: int) -> dict[str, Any]:
    """Of the settings of `train-tokenizer`."""
    return asdict(
        QuantizedArchitecture(
            vocab_size=config.vocab_size,
            code_width=code_width,
            width=config.width,
            groups=config.groups,
            blocks_per_group=config.blocks_per_group,
            output_channels=6 if config.reconstruction == "logit-laplace" else 3,
        )
    )


def build(
    architecture: Mapping[str, Any],
    stored: Collection[str] | None,
    quantizer: Callable[[QuantizedArchitecture], nn.Module],
) -> QuantizedVAE:
    """A network with fresh weights; see `TokenizerKind.build`."""
    shape = QuantizedArchitecture(**architecture)
    if stored is not None and shape.groups * shape.blocks_per_group > len(stored):  # before as many blocks are built
        raise ValueError(f"{shape.groups} groups of {shape.blocks_per_group} blocks")
    return QuantizedVAE(shape, quantizer(shape))


class QuantizedVAE(CodebookModel):
    """An autoencoder whose vectors are quantized; images are (B, 3, H, W) in [0, 1].

    Args:
        quantizer: With `nearest`, `lookup` and `forward` over vectors (..., D).
    """

    def __init__(self, architecture: QuantizedArchitecture, quantizer: nn.Module) -> None:
        super().__init__()
        networks = architecture.networks
        self.architecture = architecture
        self.vocab_size, self.downsample = architecture.vocab_size, networks.downsample
        self.encoder, self.decoder = Encoder(networks), Decoder(networks)
        initialize(self, networks.init_gain)
        self.quantizer = quantizer

    def no_weight_decay(self) -> set[str]:
        return {"quantizer.codebook"}

    def vectors(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, h, w, D), h = H / downsample."""
        mapped = map_pixels(images).contiguous(memory_format=torch.channels_last)
        return self.encoder(mapped).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The nearest code of each patch: (B, 3, H, W) in [0, 1] to (B, h * w) int64 in [0, V)."""
        with tf32_disabled(images.device):
            return self.quantizer.nearest(self.vectors(images)).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 to images (B, 3, H, W) in [0, 1]."""
        return unmap_pixels(self._decoded(tokens, grid)[:, :3].sigmoid())

    @property
    def has_logit_laplace(self) -> bool:
        return self.architecture.output_channels == 6

    @torch.no_grad()
    def logit_laplace(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._decoded(tokens, grid).chunk(2, dim=1)
        return mean, log_scale

    def _decoded(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the decoder's output (B, output_channels, H, W) for tokens (B, N)."""
        vectors = self.quantizer.lookup(tokens.unflatten(1, grid))
        return self.decoder(vectors.permute(0, 3, 1, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors (B, h, w, D), their codes (B, h, w), the decoder's output, and the quantizer's mean |z - e|^2."""
        vectors = self.vectors(images)
        quantized, codes, distance = self.quantizer(vectors)
        return vectors, codes, self.decoder(quantized.permute(0, 3, 1, 2)), distance
