"""Mixup and CutMix (timm's), drawn once for a fixed group of a step's images.

In the release every device draws for its own batch of 64 to 128 images. Here a group is a set of pairs of places in the
global batch, so that what an image is mixed with, and how, depends on neither processes nor micro-batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.sampler import rank_indices
from beitcli.engine.trainer.prefetch import to_device
from beitcli.errors import UsageError
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.runtime.distributed.world import DistributedContext


class GroupedMixup:
    """timm's `Mixup` over groups of `config.mixup_group` images of the global batch.

    Place p of a batch of B is mixed with place B - 1 - p; both lie in one process. The middle image of an odd batch
    stays as it is; several processes take no such batch (`require_pairs`).
    """

    def __init__(self, config: FinetuneConfig, classes: int, world: DistributedContext) -> None:
        self.seed, self.group_size = config.seed, config.mixup_group
        self.world = world
        self.mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.smoothing,
            num_classes=classes,
        )

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, step: int, batch_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes this process's part of a batch.

        Args:
            images: (b, 3, H, W), normalised; may be written to.
            labels: (b,) int64.
            batch_size: B of all processes.

        Returns:
            The images, and labels (b, classes): mixed and smoothed.
        """
        torn = self.world.size > 1 and (batch_size % 2 or len(labels) % 2)  # in a dry run alone
        if batch_size < 2 or torn:
            return images, labels
        groups = _rows_by_group(batch_size, self.group_size, self.world.rank, self.world.size)
        if len(groups) == 1:
            return self._mixed(images, labels, step, next(iter(groups)))
        mixed: torch.Tensor | None = None
        for group, places in groups.items():
            rows = to_device(places, images.device)
            part, targets = self._mixed(images.index_select(0, rows), labels.index_select(0, rows), step, group)
            if mixed is None:
                mixed = targets.new_empty(len(labels), targets.shape[1])
            images.index_copy_(0, rows, part)
            mixed.index_copy_(0, rows, targets)
        assert mixed is not None
        return images, mixed

    def _mixed(
        self, images: torch.Tensor, labels: torch.Tensor, step: int, group: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """timm takes pairs, and draws from numpy's global generator: that is keyed by the step and the group."""
        np.random.seed(keyed_integer(self.seed, "mixup", group, step) % (1 << 32))  # noqa: NPY002
        if len(labels) % 2 == 0:
            return self.mixup(images, labels)
        middle = slice(len(labels) // 2, len(labels) // 2 + 1)
        smoothed = mixup_target(labels[middle], self.mixup.num_classes, smoothing=self.mixup.label_smoothing)
        alone = images[middle].clone(), smoothed
        if len(labels) == 1:
            return alone
        pairs = self.mixup(*(torch.cat((each[: middle.start], each[middle.stop :])) for each in (images, labels)))
        first, second = zip(*(each.chunk(2) for each in pairs), strict=True)
        return torch.cat((first[0], alone[0], second[0])), torch.cat((first[1], alone[1], second[1]))


@lru_cache(maxsize=4)
def _rows_by_group(batch_size: int, group_size: int, rank: int, size: int) -> dict[int, torch.Tensor]:
    """Rows of this process's part by group, (n,) int64 each; the second half of each mirrors the first."""
    places = rank_indices(batch_size, rank, size)
    pairs = np.minimum(places, batch_size - 1 - places)
    groups = pairs // max(1, group_size // 2) if group_size else np.zeros_like(pairs)
    return {int(group): torch.from_numpy(np.flatnonzero(groups == group)) for group in np.unique(groups)}


def require_pairs(config: FinetuneConfig, processes: int) -> None:
    """Checks that images can be mixed: a batch has pairs, and every rank both images of each of its own.

    Not for batches of fewer images than ranks, which another check refuses.

    Raises:
        UsageError: A rank would have no pair, or half of one.
    """
    batch, pairs = config.batch_size, config.batch_size // 2
    if not (config.mixup > 0 or config.cutmix > 0) or batch < processes:
        return
    noun = "1 process" if processes == 1 else f"{processes} processes"
    if pairs < processes and not (batch == 1 and config.resume):  # earlier versions began such runs
        raise UsageError(
            f"--mixup and --cutmix mix pairs, and a batch of {batch} has {pairs} for {noun}.",
            f"Give --batch-size {2 * processes} or more, fewer --gpus, or --mixup 0 --cutmix 0.",
        )
    if batch % 2 and processes > 1:
        raise UsageError(
            f"--mixup and --cutmix mix pairs, which {noun} cannot share of a batch of {batch}.",
            f"Give --batch-size {batch + 1}, --gpus 1, or --mixup 0 --cutmix 0.",
        )
