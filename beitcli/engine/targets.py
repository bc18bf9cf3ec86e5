"""What a patch is to be predicted as: its visual token (paper section 2.3), or its pixels (the ablation of Table 4).

    tokens: wanted = tokenizer.encode(token_images)          (B * N,) int64 in [0, V);  cross entropy
    pixels: wanted = patches of the normalised images        (B * N, 3 * P * P);        mean squared error

Pixels are normalised as the network's input is, by ImageNet's mean and standard deviation of each channel by default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from beitcli.data.color import apply_color
from beitcli.engine.training import Tensors
from beitcli.tokenizers import Tokenizer
from beitcli.tokenizers.pixels import patch_pixels


class Tally(ABC):
    """Figures over the batches of a measurement."""

    @abstractmethod
    def add(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> None:
        """Takes in a batch; the arguments are those of `Target.training_figures`."""

    @abstractmethod
    def figures(self) -> dict[str, float]: ...


class Target(ABC):
    """What the head learns.

    Attributes:
        outputs: Columns of the head.
    """

    outputs: int

    @abstractmethod
    def wanted(self, batch: Tensors, images: torch.Tensor) -> torch.Tensor:
        """The target of every patch of a batch, (B * N, ...).

        Args:
            images: (B, 3, H, W), normalised.
        """

    @abstractmethod
    def loss(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """The mean over M patches: `outputs` (M, outputs) in any precision, `wanted` (M, ...)."""

    @abstractmethod
    def training_figures(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> Tensors:
        """Scalars of a training batch.

        Args:
            counted: (M,) bool, the patches that accuracies are of; None for all.
        """

    @abstractmethod
    def tally(self) -> Tally: ...

    def running_figures(self) -> dict[str, float]:
        """Figures over all of training so far."""
        return {}

    def state(self) -> Tensors:
        """What `running_figures` rests on, for a checkpoint."""
        return {}

    def load_state(self, tensors: Tensors) -> None:  # noqa: B027 - only tokens are counted
        """The inverse of `state`."""


class TokenTarget(Target):
    """Visual tokens; `counts` (V,) are those of training so far."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.outputs = tokenizer, tokenizer.vocab_size
        self.counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=device)

    def wanted(self, batch: Tensors, images: torch.Tensor) -> torch.Tensor:
        tokens = batch.get("visual_tokens")  # known before the step, where there is a cache
        return (self.encode(batch) if tokens is None else tokens).flatten()

    def encode(self, batch: Tensors) -> torch.Tensor:
        """(B, N) int64 of a batch's `token_images`, whose `color` is applied first."""
        token_images = batch["token_images"]
        if "color" in batch:
            token_images = apply_color(token_images, batch["color"])
        with torch.autocast(token_images.device.type, enabled=False):  # the tokenizer has a precision of its own
            return self.tokenizer.encode_alike(token_images)

    def loss(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs.float(), wanted)

    def training_figures(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> Tensors:
        weights = torch.ones_like(wanted) if counted is None else counted.to(wanted.dtype)
        self.counts.scatter_add_(0, wanted, weights)
        right = (outputs.argmax(dim=1) == wanted).float()
        return {"masked_accuracy": (right * weights).sum() / weights.sum()}

    def tally(self) -> Tally:
        return _TokenTally(torch.zeros_like(self.counts))

    def running_figures(self) -> dict[str, float]:
        baseline, entropy = unigram_figures(self.counts)
        return {"baseline_accuracy": baseline, "unigram_entropy": entropy}

    def state(self) -> Tensors:
        return {"token_counts": self.counts}

    def load_state(self, tensors: Tensors) -> None:
        self.counts.copy_(tensors["token_counts"])


class _TokenTally(Tally):
    def __init__(self, counts: torch.Tensor) -> None:
        self.counts = counts
        self.loss, self.patches, self.right = 0.0, 0, 0

    def add(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> None:
        self.loss += float(F.cross_entropy(outputs.float(), wanted, reduction="sum"))
        self.patches += len(wanted)
        if counted is not None:
            outputs, wanted = outputs[counted], wanted[counted]
        self.right += int((outputs.argmax(dim=1) == wanted).sum())
        self.counts += torch.bincount(wanted, minlength=len(self.counts))

    def figures(self) -> dict[str, float]:
        baseline, entropy = unigram_figures(self.counts)
        return {
            "loss": self.loss / self.patches,
            "masked_accuracy": self.right / int(self.counts.sum()),
            "baseline_accuracy": baseline,
            "unigram_entropy": entropy,
        }


def unigram_figures(counts: torch.Tensor) -> tuple[float, float]:
    """(share of the commonest token, entropy in nats) of (V,) counts."""
    probabilities = counts.cpu().double() / counts.sum().clamp(min=1).cpu()
    return float(probabilities.max()), float(-torch.special.xlogy(probabilities, probabilities).sum())


class PixelTarget(Target):
    """The normalised pixels of a patch; needs no tokenizer."""

    def __init__(self, patch_size: int) -> None:
        self.patch_size, self.outputs = patch_size, 3 * patch_size**2

    def wanted(self, batch: Tensors, images: torch.Tensor) -> torch.Tensor:
        return patch_pixels(images, self.patch_size).flatten(0, 1)

    def loss(self, outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(outputs.float(), wanted)

    def training_figures(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> Tensors:
        return {}

    def tally(self) -> Tally:
        return _PixelTally()


class _PixelTally(Tally):
    """Sums in double precision; `colours` and `squares` are of each channel."""

    def __init__(self) -> None:
        self.error, self.values = 0.0, 0
        self.colours = torch.zeros(3, dtype=torch.float64)
        self.squares = torch.zeros(3, dtype=torch.float64)

    def add(self, outputs: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor | None) -> None:
        self.error += float(F.mse_loss(outputs.float(), wanted)) * wanted.numel()
        self.values += wanted.numel()
        channels = wanted.unflatten(1, (3, -1)).cpu()
        self.colours += channels.sum(dim=(0, 2), dtype=torch.float64)
        self.squares += channels.square().sum(dim=(0, 2), dtype=torch.float64)

    def figures(self) -> dict[str, float]:
        """`baseline_loss`: the error of always guessing each channel's mean, which is its variance."""
        a_channel = self.values / 3
        variances = self.squares / a_channel - (self.colours / a_channel).square()
        return {"loss": self.error / self.values, "baseline_loss": float(variances.mean())}
