"""Interfaces of visual tokenizers: the network (`TokenizerModel`) and the opened, frozen `Tokenizer`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.compute.device import tf32_set
from beitcli.tokenizers.portions import INVARIANT_BATCH, portions

Precision = Literal["fp32", "bf16", "fp16"]


class TokenizerModel(ABC, nn.Module):
    """Network of a tokenizer. Subclasses set `vocab_size` and `downsample`, define `encode`, and usually `decode`.

    Attributes:
        vocab_size: V, the number of codes.
        downsample: Pixels per token along each side.
        precisions: Precisions supported by `in_precision`.
        no_decoder_hint: The way out for who wants pictures of its tokens, where it has no decoder.
    """

    vocab_size: int
    downsample: int
    precisions: tuple[Precision, ...] = ("fp32",)
    no_decoder_hint = "Give a folder that holds its decoder too, such as DALL-E's encoder.pkl and decoder.pkl."

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
        """Whether tokens can be decoded to images; by default, whether the class defines `decode`."""
        return type(self).decode is not TokenizerModel.decode

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps (B, N) int64 of `grid` (h, w) to images (B, 3, H, W) in [0, 1]; StorageError if it has no decoder."""
        raise no_decoder(self)

    def code_logits(self, images: Tensor) -> Tensor | None:
        """Maps the output of `preprocess` to logits (B, N, V) of q(token | image), whose argmax is `encode`.

        None if q is a point mass at `encode`, as it is for quantizers.
        """
        return None

    def code_vectors(self) -> Tensor | None:
        """Returns vectors (V, any width) whose distances say how alike codes are; None if the network has none."""
        return None

    @property
    def has_logit_laplace(self) -> bool:
        """Whether the decoder gives a logit-Laplace density of each pixel, instead of the pixel alone."""
        return False

    def logit_laplace(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Maps (B, N) int64 to the mean of logit(pixel) and ln b, (B, 3, H, W) each, of pixels after `map_pixels`.

        Only if `has_logit_laplace`.
        """
        raise no_decoder(self)

    def in_precision(self, precision: Precision) -> TokenizerModel:
        """Returns the network with its encoder in one of `precisions`; for fp32, the network itself."""
        return self

    def compiled(self, size: tuple[int, int]) -> tuple[TokenizerModel, str]:
        """Returns the network compiled for images of `size` (H, W) and "", or itself and the reason of the failure."""
        return self, "its kind has no compiled form"


class TokenLogitsModel(TokenizerModel):
    """A network whose encoder gives logits over the codes: tokens are their argmax. Subclasses define `token_logits`.

    Attributes:
        allows_tf32: Whether CUDA computes what is fp32 in the encoder in TF32; only in a low precision.
    """

    allows_tf32 = False

    @abstractmethod
    def token_logits(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) in [0, 1] to logits (B, V, h, w), h = H / downsample."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the most likely code of each patch: (B, 3, H, W) in [0, 1] -> (B, h * w) int64 in [0, V)."""
        with tf32_set(images.device, self.allows_tf32):
            return self.token_logits(images).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def code_logits(self, images: Tensor) -> Tensor:
        with tf32_set(images.device, self.allows_tf32):
            return self.token_logits(images).flatten(2).mT


def no_decoder(model: TokenizerModel) -> StorageError:
    return StorageError("The tokenizer has no decoder: its tokens cannot be made into pictures.", model.no_decoder_hint)


@dataclass(frozen=True)
class Tokenizer:
    """A frozen tokenizer.

    Attributes:
        size: Side of the training images in pixels.
        sha256: Hash of the weights' file; for those of other projects, `sha256_of_tensors` of what makes the tokens.
        warnings: Newer checkpoints that are damaged.
        notes: Further sentences for the user.
        precision: Precision of the encoder; the decoder is fp32.
        intensity_range: `--intensity-range` of its training; None for `full`.
        is_compiled: Whether it uses torch.compile, which may round differently than eager mode.
    """

    reference: str
    model: TokenizerModel
    size: int
    sha256: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    precision: Precision = "fp32"
    is_compiled: bool = False
    intensity_range: str | None = None

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def downsample(self) -> int:
        """Pixels per token along each side."""
        return self.model.downsample

    @property
    def can_decode(self) -> bool:
        return self.model.can_decode

    def require_decoder(self) -> None:
        """Raises StorageError if there is no decoder."""
        if not self.can_decode:
            raise no_decoder(self.model)

    def grid(self, size: int) -> tuple[int, int]:
        """Returns the token grid (h, w) of square images of `size` pixels.

        Raises:
            UsageError: `size` is not a multiple of `downsample`.
        """
        factor = self.model.downsample
        if size < factor or size % factor:
            raise UsageError(
                f"--size {size} is not divided by {factor}, the factor of tokenizer '{self.reference}'.",
                f"Give a multiple of {factor}, such as {self.size}.",
            )
        return size // factor, size // factor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Maps uint8 or [0, 1] float images (B, 3, H, W) to tokens (B, N) int64, N = H W / downsample^2.

        Images need not be of `size`.
        """
        return self.model.encode(self.model.preprocess(images))

    def encode_batch_invariant(self, images: torch.Tensor) -> torch.Tensor:
        """Like `encode`, but on the CPU the tokens of an image do not depend on the batch, bit for bit.

        Images are encoded in portions of eight, the last one padded with black images, or in larger ones that give the
        same bits (`portions.py`). On other devices this is `encode`.
        """
        if images.device.type != "cpu":
            return self.encode(images)
        tokens = []
        for part in portions(self.model, self._logits, images):
            missing = max(0, INVARIANT_BATCH - len(part))
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
            tokens.append(self.encode(whole)[: len(part)])
        return torch.cat(tokens)

    def _logits(self, images: Tensor) -> Tensor | None:
        return self.model.code_logits(self.model.preprocess(images))

    def in_precision(self, precision: Precision) -> Tokenizer:
        """Returns a copy of an fp32 tokenizer with its encoder in one of `model.precisions`; logits stay fp32."""
        return replace(self, model=self.model.in_precision(precision), precision=precision)

    def compiled(self, size: tuple[int, int]) -> tuple[Tokenizer, str]:
        """Returns the tokenizer compiled for images of `size` (H, W) and "", or uncompiled and the failure reason."""
        model, failure = self.model.compiled(size)
        return replace(self, model=model, is_compiled=not failure), failure

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Maps tokens (B, N) int64 to images (B, 3, H, W) in [0, 1]. Raises StorageError if there is no decoder."""
        return self.model.decode(tokens, grid)


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and values of tensors on the CPU: independent of the file format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Converts uint8 to float in [0, 1]; returns floats unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
