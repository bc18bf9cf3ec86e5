"""Discrete VAE: images to visual tokens and back (DALL-E, arXiv 2102.12092, App. A; BEiT section 2.1.2).

The same class implements OpenAI's tokenizer, with the defaults of `DVAEArchitecture`, and the small tokenizers of
`beit train-tokenizer`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from beitcli.runtime.deferred_compiler import meta_device
from beitcli.tokenizers.base import Precision, TokenLogitsModel, no_decoder
from beitcli.tokenizers.dvae_loss import gumbel_softmax, map_pixels, unmap_pixels
from beitcli.tokenizers.dvae_network import Decoder, DVAEArchitecture, Encoder, initialize
from beitcli.tokenizers.mixed_precision import DTYPES, LowPrecisionEncoder


class DiscreteVAE(TokenLogitsModel):
    """Discrete VAE: `encode` computes BEiT's targets, `decode` reconstructs images, `forward` is for training.

    Images are always (B, 3, H, W) in [0, 1]; scaling to [0.1, 0.9] and back is applied inside.

    Args:
        decoder: False builds only the encoder.
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

    def code_vectors(self) -> Tensor | None:
        """Returns what the decoder's first convolution makes of a code; else the weights of the code's logit."""
        if self.decoder is not None:
            return self.decoder.stem.weight.detach()[:, :, 0, 0].mT
        head = getattr(self.encoder, "head", None)
        return None if head is None else head.weight.detach()[:, :, 0, 0]

    def require_decoder(self) -> Decoder:
        """Returns the decoder. Raises StorageError if there is none."""
        if self.decoder is None:
            raise no_decoder(self)
        return self.decoder

    def token_logits(self, images: Tensor) -> Tensor:
        mapped = map_pixels(images).contiguous(memory_format=torch.channels_last)  # 1.6-2x faster on the CPU
        return self.encoder(mapped)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return unmap_pixels(self._decoded(tokens, grid)[:, :3].sigmoid())

    @property
    def has_logit_laplace(self) -> bool:
        return self.decoder is not None and self.architecture.output_channels == 6

    @torch.no_grad()
    def logit_laplace(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        mean, log_scale = self._decoded(tokens, grid).chunk(2, dim=1)
        return mean, log_scale

    def _decoded(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the decoder's output (B, output_channels, H, W) for tokens (B, N)."""
        decoder = self.require_decoder()
        return decoder.unfold(decoder.embed(tokens.unflatten(1, grid)))

    def forward(self, images: Tensor, temperature: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstructs images from relaxed codes.

        Args:
            images: (B, 3, H, W) in [0, 1].
            temperature: Temperature of the Gumbel-softmax.
            noise: (B,) int64 seeds of the Gumbel noise, on the CPU; None draws from torch's global generator.

        Returns:
            Logits (B, V, h, w), and the decoder's output (B, output_channels, H, W).
        """
        logits = self.token_logits(images)
        return logits, self.require_decoder()(gumbel_softmax(logits, temperature, noise))

    def with_encoder(self, encoder: nn.Module) -> DiscreteVAE:
        """Returns a frozen copy with another encoder module; the decoder is shared."""
        with meta_device():
            other = DiscreteVAE(self.architecture, decoder=False)
        other.encoder, other.decoder, other.allows_tf32 = encoder, self.decoder, self.allows_tf32
        return other.requires_grad_(False).eval()

    def in_precision(self, precision: Precision) -> DiscreteVAE:
        if precision == "fp32":
            return self
        low = self.with_encoder(LowPrecisionEncoder(self.encoder, DTYPES[precision]))  # type: ignore[arg-type]
        low.allows_tf32 = True
        return low

    def compiled(self, size: tuple[int, int]) -> tuple[DiscreteVAE, str]:
        """Compiles the encoder; one graph serves every batch of more than one image.

        torch.compile compiles at the first call, so it is called here, to report machines without a working compiler.
        """
        device = next(self.encoder.parameters()).device
        try:
            quick = self.with_encoder(torch.compile(self.encoder))  # type: ignore[arg-type]
            for count in (2, 3):  # a second batch size makes the batch dimension dynamic
                quick.encode(torch.zeros(count, 3, *size, device=device))
        except Exception as error:  # compilers raise any kind of error
            return self, (str(error).strip().splitlines() or [type(error).__name__])[0]
        return quick, ""
