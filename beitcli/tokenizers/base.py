"""What a visual tokenizer is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from beitcli.errors import UsageError
from beitcli.tokenizers.dvae import Decoder, DiscreteVAE
from beitcli.tokenizers.mixed_precision import Precision, compiled, in_precision

PORTION = 8  # images


@dataclass(frozen=True)
class Tokenizer:
    """A frozen tokenizer.

    Attributes:
        model: `encode` (B, 3, H, W) in [0, 1] -> (B, N) int64, and `decode` back where it has a decoder.
        size: Side in pixels of the images it was trained on.
        sha256: Of its weights; of DALL-E's, of the encoder's alone, whichever file they came from.
        warnings: Newer checkpoints of it that were damaged.
        notes: What else a person should know, in sentences.
        precision: Of the encoder; the decoder is fp32.
        is_compiled: Which may round otherwise than the same encoder uncompiled.
    """

    reference: str
    model: DiscreteVAE
    size: int
    sha256: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision = "fp32"
    is_compiled: bool = False

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def can_decode(self) -> bool:
        return self.model.decoder is not None

    def require_decoder(self) -> Decoder:
        """Raises StorageError where there is none."""
        return self.model.require_decoder()

    def grid(self, size: int) -> tuple[int, int]:
        """Tokens down and across for square images of `size` pixels.

        Raises:
            UsageError: The tokenizer's factor does not divide it.
        """
        factor = self.model.downsample
        if size < factor or size % factor:
            raise UsageError(
                f"--size {size} is not divided by {factor}, the factor of tokenizer '{self.reference}'.",
                f"Give a multiple of {factor}, such as {self.size}.",
            )
        return size // factor, size // factor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 or [0, 1] float images (B, 3, H, W) to (B, N) int64."""
        return self.model.encode(to_unit(images))

    def encode_alike(self, images: torch.Tensor) -> torch.Tensor:
        """As `encode`; on a CPU an image's tokens do not depend on the others that it comes with, to the last bit.

        Its convolutions choose a kernel by the batch's size, and logits differ by 4e-6 between those: so it sees
        eight images at a time, the last ones filled up with black. On other devices it is `encode`.
        """
        if images.device.type != "cpu":
            return self.encode(images)
        tokens = []
        for part in images.split(PORTION):
            missing = PORTION - len(part)
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            tokens.append(self.encode(whole)[: len(part)])
        return torch.cat(tokens)

    def in_precision(self, precision: Precision) -> Tokenizer:
        """The fp32 tokenizer with its encoder in `precision`, skips and logits still fp32."""
        return replace(self, model=in_precision(self.model, precision), precision=precision)

    def compiled(self, size: tuple[int, int]) -> tuple[Tokenizer, str]:
        """Itself compiled for images of `size` (H, W), and nothing; or as it is, and why it cannot be."""
        model, failure = compiled(self.model, size)
        return replace(self, model=model, is_compiled=not failure), failure

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N) int64 to images (B, 3, H, W) in [0, 1]; StorageError where there is no decoder."""
        return self.model.decode(tokens, grid)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
