"""Interfaces of visual tokenizers: the network (`TokenizerModel`) and the opened, frozen `Tokenizer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from beitcli.errors import StorageError, UsageError

PORTION = 8  # images

Precision = Literal["fp32", "bf16", "fp16"]


class TokenizerModel(ABC, nn.Module):
    """Network of a tokenizer. Subclasses set `vocab_size` and `downsample`, define `encode`, and usually `decode`.

    Attributes:
        vocab_size: V, the number of codes.
        downsample: Side of a token in pixels.
        precisions: Precisions supported by `in_precision`.
    """

    vocab_size: int
    downsample: int
    precisions: tuple[Precision, ...] = ("fp32",)

    def preprocess(self, images: Tensor) -> Tensor:
        """Maps uint8 or [0, 1] float images (B, 3, H, W) to the input of `encode`; by default floats in [0, 1]."""
        return to_unit(images)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Maps the output of `preprocess` to tokens (B, h * w) int64 in [0, V), in row-major order; h = H / downsample.

        Use `tf32_disabled`: tokens must not depend on the precision of the model that is trained on them.
        """

    @property
    def can_decode(self) -> bool:
        """Whether pictures can be made of tokens; by default, whether the class defines `decode`."""
        return type(self).decode is not TokenizerModel.decode

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps (B, N) int64 of `grid` (h, w) to images (B, 3, H, W) in [0, 1]; StorageError if it has no decoder."""
        raise no_decoder()

    def in_precision(self, precision: Precision) -> TokenizerModel:
        """Returns the network with its encoder in one of `precisions`; for fp32, the network itself."""
        return self

    def compiled(self, size: tuple[int, int]) -> tuple[TokenizerModel, str]:
        """Returns the network compiled for images of `size` (H, W) and "", or itself and the reason of the failure."""
        return self, "its kind has no compiled form"


def no_decoder() -> StorageError:
    return StorageError(
        "The tokenizer has no decoder: its tokens cannot be made into pictures.",
        "Give a folder that holds its decoder too, such as DALL-E's encoder.pkl and decoder.pkl.",
    )


@dataclass(frozen=True)
class Tokenizer:
    """A frozen tokenizer.

    Attributes:
        size: Side in pixels of the images it was trained on.
        sha256: Of its weights; of DALL-E's, of the encoder's alone, whichever file they came from.
        warnings: Newer checkpoints of it that were damaged.
        notes: What else a person should know, in sentences.
        precision: Of the encoder; the decoder is fp32.
        is_compiled: Which may round otherwise than the same encoder uncompiled.
    """

    reference: str
    model: TokenizerModel
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
        return self.model.can_decode

    def require_decoder(self) -> None:
        """Raises StorageError where there is none."""
        if not self.can_decode:
            raise no_decoder()

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
        return self.model.encode(self.model.preprocess(images))

    def encode_batch_invariant(self, images: torch.Tensor) -> torch.Tensor:
        """As `encode`; on a CPU an image's tokens do not depend on the others that it comes with, to the last bit.

        Convolutions choose a kernel by the batch's size, and logits differ by 4e-6 between those: so the encoder sees
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
        """The fp32 tokenizer with its encoder in `precision`, one of `model.precisions`; its logits are still fp32."""
        return replace(self, model=self.model.in_precision(precision), precision=precision)

    def compiled(self, size: tuple[int, int]) -> tuple[Tokenizer, str]:
        """Itself compiled for images of `size` (H, W), and nothing; or as it is, and why it cannot be."""
        model, failure = self.model.compiled(size)
        return replace(self, model=model, is_compiled=not failure), failure

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N) int64 to images (B, 3, H, W) in [0, 1]; StorageError where there is no decoder."""
        return self.model.decode(tokens, grid)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
