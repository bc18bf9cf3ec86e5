"""A discrete VAE: images to visual tokens and back (DALL-E, arXiv 2102.12092, App. A; BEiT section 2.1.2).

One class is both OpenAI's pair, with the defaults of `DVAEArchitecture`, and the small tokenizers that
`beit train-tokenizer` trains. Encoder: convolution, groups of bottleneck blocks with a 2x2 max-pool between groups,
ReLU, 1x1 to V logits. Decoder: the mirror image with nearest upsampling. Sizes at the defaults: encoder 53,786,240
parameters, decoder 43,829,766; encoding 112x112 to 14x14 tokens costs 52 GFLOP an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.errors import UsageError
from beitcli.runtime.compute.device import tf32_disabled
from beitcli.tokenizers.base import Precision, TokenizerModel, no_decoder
from beitcli.tokenizers.dvae_loss import gumbel_softmax, map_pixels, unmap_pixels
from beitcli.tokenizers.mixed_precision import DTYPES, LowPrecisionEncoder


@dataclass(frozen=True, kw_only=True)
class DVAEArchitecture:
    """The shape of a `DiscreteVAE`; the defaults are DALL-E's."""

    vocab_size: int = 8192  # codes
    width: int = 256  # channels of the group at full resolution; each pool doubles them
    groups: int = 4
    blocks_per_group: int = 2
    decoder_init_width: int = 128  # channels between the codes and the decoder's first group
    init_gain: float = 1.0  # initial weights are N(0, gain^2 / fan_in); 2**0.5 (He) trains small tokenizers faster
    output_channels: int = 6  # 6: mean and ln scale of the logit-Laplace density; 3: pixels only

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "groups", "blocks_per_group", "decoder_init_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"The tokenizer's {name} is {getattr(self, name)}.", "Give 1 or more.")
        if self.init_gain <= 0:
            raise UsageError(f"The tokenizer's init_gain is {self.init_gain}.", "Give more than 0.")
        if self.width % 4:
            raise UsageError(f"The tokenizer's width is {self.width}.", "Give a multiple of 4.")
        if self.output_channels not in (3, 6):
            raise UsageError(f"The tokenizer's output_channels is {self.output_channels}.", "Give 3 or 6.")

    @property
    def downsample(self) -> int:
        """Pixels a token stands for, along each side."""
        return 2 ** (self.groups - 1)

    @property
    def residual_gain(self) -> float:
        """What each block's residual path is multiplied by: 1 / (number of blocks) squared."""
        return 1.0 / (self.groups * self.blocks_per_group) ** 2


def convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=(kernel_size - 1) // 2)


def initialize(module: nn.Module, gain: float) -> None:
    """Weights of every convolution from N(0, gain^2 / fan_in), biases zero."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=gain * conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


Kernels = tuple[int, int, int, int]


class Bottleneck(nn.Module):
    """skip(features) + gain * residual(features); the residual path is four ReLU-first convolutions."""

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: Kernels, gain: float) -> None:
        super().__init__()
        hidden = out_channels // 4
        channels = (in_channels, hidden, hidden, hidden, out_channels)
        self.gain = gain
        self.skip = nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)
        self.convs = nn.ModuleList(map(convolution, channels[:-1], channels[1:], kernel_sizes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        residual = features
        for conv in self.convs:
            residual = conv(F.relu(residual))
        return self.skip(features) + self.gain * residual


class Encoder(nn.Module):
    """Mapped pixels to logits over the codes."""

    kernel_sizes = (3, 3, 3, 1)

    def __init__(self, architecture: DVAEArchitecture) -> None:
        super().__init__()
        widths = [architecture.width * 2**group for group in range(architecture.groups)]
        self.stem = convolution(3, widths[0], 7)
        self.groups = nn.ModuleList(
            block_group(in_channels, out_channels, self.kernel_sizes, architecture)
            for in_channels, out_channels in zip([widths[0], *widths], widths, strict=False)
        )
        self.head = convolution(widths[-1], architecture.vocab_size, 1)

    def forward(self, mapped: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, V, h, w)."""
        features = self.stem(mapped)
        for index, group in enumerate(self.groups):
            if index > 0:
                features = F.max_pool2d(features, 2)
            features = group(features)
        return self.head(F.relu(features))


class Decoder(nn.Module):
    """Codes, one-hot or relaxed, to the parameters of the pixels."""

    kernel_sizes = (1, 3, 3, 3)

    def __init__(self, architecture: DVAEArchitecture) -> None:
        super().__init__()
        widths = [architecture.width * 2**group for group in reversed(range(architecture.groups))]
        self.stem = convolution(architecture.vocab_size, architecture.decoder_init_width, 1)
        self.groups = nn.ModuleList(
            block_group(in_channels, out_channels, self.kernel_sizes, architecture)
            for in_channels, out_channels in zip([architecture.decoder_init_width, *widths], widths, strict=False)
        )
        self.head = convolution(widths[-1], architecture.output_channels, 1)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the stem gives for one-hot codes, without making them: (B, h, w) to (B, C, h, w)."""
        features = F.embedding(tokens, self.stem.weight[:, :, 0, 0].t()).permute(0, 3, 1, 2)
        return features + self.stem.bias[:, None, None]  # type: ignore[index]

    def forward(self, codes: Tensor) -> Tensor:
        """(B, V, h, w), summing to 1 over V, to (B, output_channels, H, W)."""
        return self.unfold(self.stem(codes))

    def unfold(self, features: Tensor) -> Tensor:
        """(B, decoder_init_width, h, w) to (B, output_channels, H, W)."""
        for index, group in enumerate(self.groups):
            if index > 0:
                features = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = group(features)
        return self.head(F.relu(features))


def block_group(
    in_channels: int, out_channels: int, kernel_sizes: Kernels, architecture: DVAEArchitecture
) -> nn.Sequential:
    """`blocks_per_group` bottlenecks, of which the first changes the width."""
    gain = architecture.residual_gain
    widths = [in_channels] + [out_channels] * architecture.blocks_per_group
    return nn.Sequential(*(Bottleneck(width, out_channels, kernel_sizes, gain) for width in widths[:-1]))


class DiscreteVAE(TokenizerModel):
    """The network: `encode` for BEiT's targets, `decode` to look at them, `forward` to train it.

    Images are (B, 3, H, W) in [0, 1] everywhere; the map to [0.1, 0.9] and back is applied inside.

    Args:
        decoder: False for an encoder alone, which gives tokens but no pictures.
    """

    precisions = ("fp32", "bf16", "fp16")

    def __init__(self, architecture: DVAEArchitecture, *, decoder: bool = True) -> None:
        super().__init__()
        self.architecture = architecture
        self.vocab_size, self.downsample = architecture.vocab_size, architecture.downsample
        self.encoder: nn.Module = Encoder(architecture)
        self.decoder = Decoder(architecture) if decoder else None
        initialize(self, architecture.init_gain)

    @property
    def can_decode(self) -> bool:
        return self.decoder is not None

    def require_decoder(self) -> Decoder:
        """The decoder.

        Raises:
            StorageError: There is only an encoder.
        """
        if self.decoder is None:
            raise no_decoder()
        return self.decoder

    def token_logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, V, h, w), h = H / downsample."""
        mapped = map_pixels(images).contiguous(memory_format=torch.channels_last)  # 1.6-2x the images/s on a CPU
        return self.encoder(mapped)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The likeliest code of each patch: (B, 3, H, W) in [0, 1] to (B, h * w) int64 in [0, V)."""
        with tf32_disabled(images.device):  # tokens do not follow the precision of the model that learns them
            return self.token_logits(images).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        decoder = self.require_decoder()
        features = decoder.embed(tokens.unflatten(1, grid))
        return unmap_pixels(decoder.unfold(features)[:, :3].sigmoid())

    def forward(self, images: Tensor, temperature: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One relaxed pass.

        Args:
            images: (B, 3, H, W) in [0, 1].
            temperature: Of the Gumbel-softmax.
            noise: (B,) int64 seeds of it, in the CPU's memory; None draws from torch's global generator.

        Returns:
            Logits (B, V, h, w) and the decoder's output (B, output_channels, H, W).
        """
        logits = self.token_logits(images)
        return logits, self.require_decoder()(gumbel_softmax(logits, temperature, noise))

    def with_encoder(self, encoder: nn.Module) -> DiscreteVAE:
        """The same network with another way to compute its encoder; the decoder is shared."""
        with torch.device("meta"):
            other = DiscreteVAE(self.architecture, decoder=False)
        other.encoder, other.decoder = encoder, self.decoder
        return other.requires_grad_(False).eval()

    def in_precision(self, precision: Precision) -> DiscreteVAE:
        if precision == "fp32":
            return self
        return self.with_encoder(LowPrecisionEncoder(self.encoder, DTYPES[precision]))  # type: ignore[arg-type]

    def compiled(self, size: tuple[int, int]) -> tuple[DiscreteVAE, str]:
        """One graph serves every batch of more than one image.

        The compiler is tried out here, because it works only when a first batch comes and fails in as many ways as
        there are machines without one.
        """
        device = next(self.encoder.parameters()).device
        try:
            quick = self.with_encoder(torch.compile(self.encoder))  # type: ignore[arg-type]
            for count in (2, 3):  # the second size makes the batch a variable of the graph
                quick.encode(torch.zeros(count, 3, *size, device=device))
        except Exception as error:  # the compiler raises anything
            return self, (str(error).strip().splitlines() or [type(error).__name__])[0]
        return quick, ""
