"""Targets of a patch: its visual token (paper section 2.3), or its pixels (the ablation of Table 4).

    tokens: targets = tokenizer.encode(token_images)         (B * N,) int64 in [0, V);  cross entropy
    pixels: targets = patches of the normalized images       (B * N, 3 * P * P);        mean squared error

Pixels are normalized like the input of the network, by default with ImageNet's mean and standard deviation per channel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from beitcli.data.transforms.color_jitter import apply_color
from beitcli.engine.trainer.task import Tensors
from beitcli.models.networks.patchify import patch_pixels
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.tokenizers.base import Tokenizer

_PATCHES_PER_CODE = 4  # fewer measured ones do not show the frequencies of codes


class MetricAccumulator(ABC):
    """Accumulates metrics over the batches of an evaluation."""

    @abstractmethod
    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None, images: int = 0
    ) -> None:
        """Adds a batch; the arguments are those of `Target.training_metrics`.

        Args:
            images: Of the batch, each with as many of the M patches; 0 if unknown.
        """

    @abstractmethod
    def update_empty(self) -> None:
        """Adds a batch without readable images, so that the batches of all ranks stay in order."""

    @abstractmethod
    def compute(self, world: DistributedContext = SINGLE_PROCESS) -> dict[str, float]:
        """Returns the metrics over the batches of all ranks, summed in order: they do not depend on the world size."""


class Target(ABC):
    """What the head learns to predict.

    Attributes:
        outputs: Number of outputs of the head per patch.
    """

    outputs: int

    @abstractmethod
    def targets(self, images: torch.Tensor, visual_tokens: torch.Tensor | None) -> torch.Tensor:
        """Returns the targets of all patches of a batch, (B * N, ...).

        Args:
            images: (B, 3, H, W), normalized.
            visual_tokens: (B, N) int64; None if the targets are pixels.
        """

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the mean loss over M patches, from `outputs` (M, outputs) in any precision and `targets` (M, ...).

        Args:
            weights: (M,) bool, False for patches that do not count; None if all do.
        """

    @abstractmethod
    def training_metrics(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None
    ) -> Tensors:
        """Returns scalar metrics of a training batch.

        Args:
            metric_mask: (M,) bool, True for the patches that count for accuracy; None for all.
        """

    @abstractmethod
    def accuracy(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns the share of right predictions, and counts nothing; None if the targets are no classes.

        The arguments are those of `training_metrics`.
        """

    @abstractmethod
    def accumulator(self) -> MetricAccumulator: ...

    def running_metrics(self, world: DistributedContext = SINGLE_PROCESS) -> dict[str, float]:
        """Returns metrics over all training steps so far. All ranks must call this."""
        return {}

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Context whose batches do not count for `running_metrics`."""
        yield

    def state(self) -> Tensors:
        """Returns the state behind `running_metrics`, for a checkpoint."""
        return {}

    def load_state(self, tensors: Tensors) -> None:  # noqa: B027 - only tokens are counted
        """Inverse of `state`."""


class TokenTarget(Target):
    """Visual tokens. `counts` (V,) are of all steps so far; `local_counts` of this rank since the last all-reduce."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.outputs = tokenizer, tokenizer.vocab_size
        self.counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=device)
        self.local_counts = torch.zeros_like(self.counts)

    def targets(self, images: torch.Tensor, visual_tokens: torch.Tensor | None) -> torch.Tensor:
        assert visual_tokens is not None
        return visual_tokens.flatten()

    def encode(self, batch: Tensors) -> torch.Tensor:
        """Returns (B, N) int64 tokens of a batch's `token_images`, after applying its `color` if it has one."""
        token_images = batch["token_images"]
        if "color" in batch:
            token_images = apply_color(token_images, batch["color"])
        with torch.autocast(token_images.device.type, enabled=False):  # the tokenizer has its own precision
            return self.tokenizer.encode_batch_invariant(token_images)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if weights is None:
            return F.cross_entropy(outputs.float(), targets)
        return (F.cross_entropy(outputs.float(), targets, reduction="none") * weights).sum() / weights.sum()

    def training_metrics(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None
    ) -> Tensors:
        """Also counts the targets for `running_metrics`."""
        self.local_counts.scatter_add_(0, targets, _weights(targets, metric_mask))
        return {"masked_accuracy": self.accuracy(outputs, targets, metric_mask)}

    def accuracy(self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None) -> torch.Tensor:
        weights = _weights(targets, metric_mask)
        right = (outputs.argmax(dim=1) == targets).float()
        return (right * weights).sum() / weights.sum()

    def accumulator(self) -> MetricAccumulator:
        return _TokenAccumulator(torch.zeros_like(self.counts), self.counts)

    def running_metrics(self, world: DistributedContext = SINGLE_PROCESS) -> dict[str, float]:
        self.counts += world.all_reduce_sum(self.local_counts)
        self.local_counts.zero_()
        baseline, entropy = unigram_metrics(self.counts)
        return {"baseline_accuracy": baseline, "unigram_entropy": entropy}

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        before = self.local_counts.clone()
        try:
            yield
        finally:
            self.local_counts.copy_(before)

    def state(self) -> Tensors:
        return {"token_counts": self.counts + self.local_counts}

    def load_state(self, tensors: Tensors) -> None:
        self.counts.copy_(tensors["token_counts"])
        self.local_counts.zero_()


def _weights(targets: torch.Tensor, metric_mask: torch.Tensor | None) -> torch.Tensor:
    return torch.ones_like(targets) if metric_mask is None else metric_mask.to(targets.dtype)


class _TokenAccumulator(MetricAccumulator):
    """Sums over the measured patches.

    Args:
        counts: (V,) zeros.
        trained: (V,) counts of the tokens that were trained on, over all ranks.
    """

    def __init__(self, counts: torch.Tensor, trained: torch.Tensor) -> None:
        self.counts, self.trained = counts, trained
        self.guess = ((trained + 1).float() / (trained.sum() + len(trained)).float()).log()  # as `trained_frequencies`
        # per batch: summed loss, patches, images, (2,) sums over images and over their squares of the correct patches,
        # and (3,): such sums of the nats by which the loss is below the guess's, and that over the squares of the loss.
        # All are read at the end, as to read a tensor waits for the device.
        self.parts: list[tuple[torch.Tensor, int, int, torch.Tensor, torch.Tensor]] = []

    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None, images: int = 0
    ) -> None:
        losses = F.cross_entropy(outputs.float(), targets, reduction="none")
        right = outputs.argmax(dim=1) == targets
        if metric_mask is not None:
            right = right & metric_mask
        by_image = right.view(images, -1).sum(dim=1) if images else right.new_zeros(0, dtype=torch.int64)
        correct = torch.stack((right.sum(), by_image.square().sum()))
        lost, lead = (each.view(images or 1, -1).sum(dim=1) for each in (losses, -self.guess[targets] - losses))
        led = torch.stack((lead.sum(), lead.square().sum(), lost.square().sum()))
        self.parts.append((losses.sum(), len(targets), images, correct, led))
        self.counts.scatter_add_(0, targets, _weights(targets, metric_mask))

    def update_empty(self) -> None:
        self.parts.append((torch.zeros(()), 0, 0, torch.zeros(2, dtype=torch.int64), torch.zeros(3)))

    def compute(self, world: DistributedContext = SINGLE_PROCESS) -> dict[str, float]:
        """Standard errors have images as the units, as the patches of one are alike.

        `loss_lead_std_error` is that of how far the loss is below `unigram_entropy` or ln V, if that is less: paired by
        image where the former is the cross entropy of a guess by the tokens trained on, else that of the loss.
        """
        parts = [
            (float(loss), patches, images, *right.tolist(), *led.tolist())
            for loss, patches, images, right, led in self.parts
        ]
        loss, patches, images, right, squares, lead, lead_squares, loss_squares = map(
            sum, zip(*world.gather_interleaved(parts), strict=True)
        )
        counts = world.all_reduce_sum(self.counts.clone())
        hidden = int(counts.sum())
        enough = _PATCHES_PER_CODE * len(counts)
        is_few = hidden < enough <= int(self.trained.sum())
        baseline, entropy = trained_baselines(counts, self.trained) if is_few else unigram_metrics(counts)
        known: dict[str, float] = {"measured_patches": hidden}
        if images:
            known["measured_images"] = images
        if images > 1:
            known["masked_accuracy_std_error"] = _error_of_sum(right, squares, images) / hidden
            is_paired = is_few and entropy < math.log(len(counts))
            sums = (lead, lead_squares) if is_paired else (loss, loss_squares)
            known["loss_lead_std_error"] = _error_of_sum(*sums, images) / patches
        return {
            "loss": loss / patches,
            "masked_accuracy": right / hidden,
            "baseline_accuracy": baseline,
            "unigram_entropy": entropy,
            **known,
        }


def _error_of_sum(total: float, squares: float, number: int) -> float:
    """Returns the standard error of a sum over `number` units, from it and from the sum over their squares."""
    variance = (squares - total * total / number) / (number - 1)
    return math.sqrt(max(0.0, variance) * number)


def joined_metrics(last: dict[str, float], aggregated: dict[str, float]) -> dict[str, float]:
    """Joins the metrics of both predictions of patch aggregation, as accumulators compute them.

    `loss` is the sum of `masked_loss` and `aggregated_loss`; what else has no `aggregated` in its name is of `last`.
    """
    losses = {"masked_loss": last["loss"], "aggregated_loss": aggregated["loss"]}
    joined = last | {"loss": sum(losses.values())} | losses
    accuracy = aggregated.get("masked_accuracy")
    return joined if accuracy is None else joined | {"aggregated_accuracy": accuracy}


def unigram_metrics(counts: torch.Tensor) -> tuple[float, float]:
    """Returns the share of the most frequent token and the entropy in nats, from (V,) counts."""
    probabilities = counts.cpu().double() / counts.sum().clamp(min=1).cpu()
    return float(probabilities.max()), float(-torch.special.xlogy(probabilities, probabilities).sum())


def trained_baselines(counts: torch.Tensor, trained: torch.Tensor) -> tuple[float, float]:
    """Returns how good a guess by the frequencies of the tokens that were trained on is on the measured ones.

    As `unigram_metrics`: the share that the most frequent token of training has, and the cross entropy in nats. The
    measured tokens' own frequencies are too good a guess where they are few: n tokens have an entropy of ln n at most.
    No code is impossible.

    Args:
        counts: (V,) of the measured tokens.
        trained: (V,) of the others.
    """
    measured = counts.cpu().double()
    guessed = measured[trained.argmax().cpu()]
    guess = trained_frequencies(trained)
    return float(guessed / measured.sum()), float(-(measured * guess.log()).sum() / measured.sum())


def trained_frequencies(trained: torch.Tensor) -> torch.Tensor:
    """Returns (V,) float64 frequencies on the CPU: each code counts once more than it was trained on."""
    counts = trained.cpu().double()
    return (counts + 1) / (counts.sum() + len(counts))


class PixelTarget(Target):
    """The normalized pixels of a patch; needs no tokenizer."""

    def __init__(self, patch_size: int) -> None:
        self.patch_size, self.outputs = patch_size, 3 * patch_size**2

    def targets(self, images: torch.Tensor, visual_tokens: torch.Tensor | None) -> torch.Tensor:
        return patch_pixels(images, self.patch_size).flatten(0, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        if weights is None:
            return F.mse_loss(outputs.float(), targets)
        errors = F.mse_loss(outputs.float(), targets, reduction="none").mean(dim=1)
        return (errors * weights).sum() / weights.sum()

    def training_metrics(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None
    ) -> Tensors:
        return {}

    def accuracy(self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None) -> None:
        return None

    def accumulator(self) -> MetricAccumulator:
        return _PixelAccumulator()


class _PixelAccumulator(MetricAccumulator):
    """Per batch: number of values, and (7,) float64 sums: squared error, each channel's values and their squares.

    The sums stay on the device until `compute`, as to read them waits for it.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[int, torch.Tensor]] = []

    def update(
        self, outputs: torch.Tensor, targets: torch.Tensor, metric_mask: torch.Tensor | None, images: int = 0
    ) -> None:
        error, channels = F.mse_loss(outputs.float(), targets).view(1), targets.unflatten(1, (3, -1))
        if error.device.type == "mps":  # which has no float64
            error, channels = error.cpu(), channels.cpu()
        colours = channels.sum(dim=(0, 2), dtype=torch.float64)
        squares = channels.square().sum(dim=(0, 2), dtype=torch.float64)
        self.parts.append((targets.numel(), torch.cat((error.double() * targets.numel(), colours, squares))))

    def update_empty(self) -> None:
        self.parts.append((0, torch.zeros(7, dtype=torch.float64)))

    def compute(self, world: DistributedContext = SINGLE_PROCESS) -> dict[str, float]:
        """`baseline_loss`: the error of always predicting each channel's mean, which is its variance."""
        parts = world.gather_interleaved([(values, sums.cpu()) for values, sums in self.parts])
        values = sum(part[0] for part in parts)
        total = sum((part[1] for part in parts), torch.zeros(7, dtype=torch.float64))
        error, colours, squares = float(total[0]), total[1:4], total[4:]
        a_channel = values / 3
        variances = squares / a_channel - (colours / a_channel).square()
        return {"loss": error / values, "baseline_loss": float(variances.mean())}
