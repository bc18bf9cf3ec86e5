"""Visual tokenizers, and how a TOKENIZER is opened. A new tokenizer = a new file here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from beitcli.errors import StorageError, UsageError
from beitcli.models.references import OpenedModel, open_checkpoint
from beitcli.tokenizers.dvae import DiscreteVAE, DVAEArchitecture


@dataclass(frozen=True)
class Tokenizer:
    """A frozen tokenizer.

    Attributes:
        model: `encode` (B, 3, H, W) in [0, 1] -> (B, N) int64, and `decode` back.
        size: Side in pixels of the images it was trained on.
        sha256: Of its weights.
        warnings: Newer checkpoints of it that were damaged.
    """

    reference: str
    model: DiscreteVAE
    size: int
    sha256: str
    warnings: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

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


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def open_tokenizer_of(opened: OpenedModel, device: torch.device | None = None) -> Tokenizer:
    """The tokenizer that a pretraining run learned from: its own lies inside it, another where it was.

    Raises:
        StorageError: What lies there is another tokenizer now.
    """
    named = opened.settings["tokenizer"]
    reference = str(opened.run / "tokenizer") if named["reference"] == "own" else named["reference"]
    tokenizer = open_tokenizer(reference, device)
    if tokenizer.sha256 != named["sha256"]:
        raise StorageError(
            f"Tokenizer '{reference}' is not the one that '{opened.reference}' was trained with.", "Put that one back."
        )
    return tokenizer


def open_tokenizer(reference: str, device: torch.device | None = None) -> Tokenizer:
    """A run of train-tokenizer, a run of pretrain that trained its own, or a checkpoint of one.

    Raises:
        UsageError: There is none of that name.
        StorageError: It is something else, or damaged.
    """
    if reference in ("dall-e", "pixels"):
        raise UsageError(
            f"This version cannot open the tokenizer '{reference}'.",
            "Pass --recipe small, or --tokenizer own, or one trained with `beit train-tokenizer DATA`.",
        )
    inside = Path(reference) / "tokenizer"
    opened = open_checkpoint(str(inside) if (inside / "config.toml").exists() else reference)
    if opened.kind != "tokenizer":
        raise StorageError(
            f"'{reference}' is a {opened.kind}, not a tokenizer.", "Give a run of `beit train-tokenizer`."
        )
    model = DiscreteVAE(DVAEArchitecture(**opened.settings["architecture"]))
    try:
        model.load_state_dict(opened.checkpoint.model_tensors())
    except RuntimeError as error:
        raise UsageError(f"Tokenizer '{reference}' does not fit its own config: {error}.", "Train it again.") from None
    sums = (opened.checkpoint.path / "SHA256SUMS").read_text().splitlines()
    sha256 = next(line.split()[0] for line in sums if line.endswith("model.safetensors"))
    model.requires_grad_(False).eval().to(device or torch.device("cpu"))
    return Tokenizer(reference, model, opened.settings["size"], sha256, opened.warnings)
