"""The discrete VAE of BEiT's own tokenizer (arXiv 2106.08254, Table 8), after the release's `DiscreteVAE`.

Each of three stages is a 4x4 convolution of stride 2 and a residual block, all of one width; a 1x1 convolution gives V
logits. Codes are rows of a codebook, and the decoder mirrors the encoder with transposed convolutions. Pixels are
normalized by 0.5 / 0.5, and the decoder's output is normalized pixels, without a sigmoid.

The tensors have the release's names and shapes, so weights go either way as they are. Parameters at the defaults:
20,081,411; encoding 112x112 pixels to 14x14 tokens costs 13 GFLOP per image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beitcli.errors import UsageError
from beitcli.tokenizers.base import TokenLogitsModel, no_decoder
from beitcli.tokenizers.dvae_loss import gumbel_softmax

MEAN = STD = 0.5


@dataclass(frozen=True, kw_only=True)
class StridedDVAEArchitecture:
    """Architecture of a `StridedDVAE`; the defaults are the release's."""

    vocab_size: int = 8192  # codes
    code_width: int = 512  # numbers of a code
    width: int = 256  # channels of every stage
    groups: int = 3  # stages, each of which halves the resolution
    blocks_per_group: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"The tokenizer's {name} is {value}.", "Give 1 or more.")

    @property
    def downsample(self) -> int:
        """Pixels per token along each side."""
        return 2**self.groups


def normalize(images: Tensor) -> Tensor:
    """Maps [0, 1] to [-1, 1]; computed as torchvision does, for equal tokens."""
    return (images - MEAN) / STD


def denormalize(normalized: Tensor) -> Tensor:
    """Inverts `normalize`, clamped to [0, 1]."""
    return (normalized * STD + MEAN).clamp(0.0, 1.0)


class ResidualBlock(nn.Module):
    """features + convolutions(features): 3x3, ReLU, 3x3, ReLU, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features) + features


def stages(
    convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: tuple[int, int], shape: StridedDVAEArchitecture
) -> nn.Sequential:
    """Builds an encoder or a decoder from `channels` (in, out); the names are the places in one flat sequence."""
    layers: list[nn.Module] = []
    width = channels[0]
    for _ in range(shape.groups):
        layers.append(nn.Sequential(convolution(width, shape.width, 4, stride=2, padding=1), nn.ReLU()))
        layers.extend(ResidualBlock(shape.width) for _ in range(shape.blocks_per_group))
        width = shape.width
    return nn.Sequential(*layers, nn.Conv2d(width, channels[1], 1))


class StridedDVAE(TokenLogitsModel):
    """Discrete VAE of strided convolutions; images are (B, 3, H, W) in [0, 1] and normalized inside.

    Args:
        decoder: False builds only the encoder.
    """

    def __init__(self, architecture: StridedDVAEArchitecture, *, decoder: bool = True) -> None:
        super().__init__()
        self.architecture = architecture
        self.vocab_size, self.downsample = architecture.vocab_size, architecture.downsample
        self.codebook = nn.Embedding(architecture.vocab_size, architecture.code_width) if decoder else None
        self.encoder = stages(nn.Conv2d, (3, architecture.vocab_size), architecture)
        self.decoder = stages(nn.ConvTranspose2d, (architecture.code_width, 3), architecture) if decoder else None

    @property
    def can_decode(self) -> bool:
        return self.decoder is not None

    def code_vectors(self) -> Tensor:
        """Returns the codebook; of an encoder alone the weights of each code's logit."""
        if self.codebook is not None:
            return self.codebook.weight.detach()
        last = self.encoder[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight.detach()[:, :, 0, 0]

    def token_logits(self, images: Tensor) -> Tensor:
        return self.encoder(normalize(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.codebook is None or self.decoder is None:
            raise no_decoder(self)
        return denormalize(self.decoder(self.codebook(tokens.unflatten(1, grid)).permute(0, 3, 1, 2)))

    def forward(self, images: Tensor, temperature: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstructs images from relaxed codes.

        Args:
            images: (B, 3, H, W) in [0, 1].
            temperature: Temperature of the Gumbel-softmax.
            noise: (B,) int64 seeds of the Gumbel noise, on the CPU; None draws from torch's global generator.

        Returns:
            Logits (B, V, h, w), and normalized pixels (B, 3, H, W).
        """
        if self.codebook is None or self.decoder is None:
            raise no_decoder(self)
        logits = self.token_logits(images)
        codes = gumbel_softmax(logits, temperature, noise)
        return logits, self.decoder(torch.einsum("bvhw,vd->bdhw", codes, self.codebook.weight))
