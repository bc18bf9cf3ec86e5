"""Figures of a tokenizer on images, for `beit tokenize --stats`.

    explained variance = 1 - sum (image - decoded)^2 / sum (image - its mean colour)^2

0 is no better than one colour an image, 1 a perfect reconstruction, below 0 worse than one colour. The mean colour of
each patch is the other yardstick: what three real numbers a patch give, where a token is one of V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F

from beitcli.runtime.distributed.world import DistributedContext
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dvae_loss import codebook_usage, psnr

_COMPARED = 64  # images compared for `agreement`: more would cost what low precision saves


@dataclass
class Sums:
    """Sums over batches and over ranks; squares of pixels in [0, 1].

    Attributes:
        around_image: Squared differences from each image's mean colour.
        around_patch: Squared differences from each patch's mean colour.
    """

    compared: int = 0
    agreed: float = 0.0
    images: int = 0
    bad: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    around_image: float = 0.0
    around_patch: float = 0.0
    values: int = 0

    def __iadd__(self, other: Sums) -> Sums:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self


@dataclass
class Tally:
    """Running metrics of `--stats`.

    Attributes:
        counts: (V,) int64, codes seen by this rank.
        grid: (h, w) tokens of an image.
        reference: The tokenizer in fp32, if another precision is compared with it.
        watch: Called with the images, (B, 3, H, W) in [0, 1], and the tokens of each batch.
        batch: Of the current batch.
        total: Of the previous batches, of all ranks.
    """

    counts: torch.Tensor
    grid: tuple[int, int]
    reference: Tokenizer | None = None
    watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None
    batch: Sums = field(default_factory=Sums)
    total: Sums = field(default_factory=Sums)

    def count(self, tokens: torch.Tensor) -> None:
        self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))

    def compare(self, images: torch.Tensor, decoded: torch.Tensor) -> None:
        """Adds the errors of (B, 3, H, W) decoded images, and those of each image's and each patch's mean colour."""
        images, difference = images.cpu().double(), (decoded - images).cpu().double()
        self.batch.absolute += float(difference.abs().sum())
        self.batch.squared += float(difference.square().sum())
        self.batch.values += difference.numel()
        self.batch.around_image += float((images - images.mean(dim=(2, 3), keepdim=True)).square().sum())
        colors = F.interpolate(F.adaptive_avg_pool2d(images, self.grid), images.shape[2:], mode="nearest-exact")
        self.batch.around_patch += float((images - colors).square().sum())

    def compare_tokens(self, indices: Sequence[int], images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Counts the tokens that equal those in fp32, for the first images of the data."""
        count = sum(index < _COMPARED for index in indices)
        if self.reference is None or not count:
            return
        equal = self.reference.encode(images[:count]) == tokens[:count]
        self.batch.agreed += float(equal.float().mean(dim=1).sum())
        self.batch.compared += len(equal)

    def document(self, world: DistributedContext) -> dict[str, Any]:
        """Returns the figures of all ranks, which must all call this; None where there are none."""
        counts = world.all_reduce_sum(self.counts)
        used, perplexity = codebook_usage(counts)
        total, tokens = self.total, int(counts.sum())
        most = min(len(counts), tokens)
        mae = total.absolute / total.values if total.values else None
        agreement = {"agreement": total.agreed / total.compared if total.compared else None} if self.reference else {}
        return agreement | {
            "images": total.images,
            "bad": total.bad,
            "tokens_per_image": self.grid[0] * self.grid[1],
            "vocab_size": len(counts),
            "codes_used": used,
            "perplexity": perplexity,
            "entropy_share": math.log(perplexity) / math.log(most) if most > 1 else None,
            "commonest_share": int(counts.max()) / tokens if tokens else None,
            "mae": mae,
            "psnr": _psnr(total.squared, total.values),
            "psnr_image_mean": _psnr(total.around_image, total.values),
            "psnr_patch_mean": _psnr(total.around_patch, total.values),
            "explained_variance": 1 - total.squared / total.around_image if _varies(total) else None,
            "mae_normalized": None if mae is None else 2 * mae,
        }


def _psnr(squared: float, values: int) -> float | None:
    return psnr(squared / values) if values and squared else None


def _varies(total: Sums) -> bool:
    """Whether images differ from their mean colour by more than rounding of pixels."""
    return total.around_image > total.values * (0.5 / 255) ** 2
