"""Mixup and CutMix in fixed groups of the global batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.sampler import rank_indices
from beitcli.engine.classification.mixing import GroupedMixup
from beitcli.runtime.distributed.world import SINGLE_PROCESS

CLASSES = 5


def config(**more) -> FinetuneConfig:
    return FinetuneConfig(data=("photos",), init="random", epochs=1, smoothing=0.0, **more)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image is its place in the batch, everywhere."""
    places = torch.arange(size, dtype=torch.float32)
    return places[:, None, None, None].expand(size, 3, 8, 8).clone(), torch.arange(size) % CLASSES


def weights(images: torch.Tensor) -> torch.Tensor:
    """(B,) share of its own pixels that an image of place p keeps, mixed with place B - 1 - p."""
    size = len(images)
    own = torch.arange(size, dtype=torch.float32)
    return (images.mean(dim=(1, 2, 3)) - (size - 1 - own)) / (2 * own - (size - 1))


def test_a_group_shares_its_draw_and_groups_differ():
    images, _ = GroupedMixup(config(cutmix=0.0, mixup_group=4), CLASSES, SINGLE_PROCESS)(
        *batch(12), step=0, batch_size=12
    )
    kept = weights(images)
    groups = [kept[[0, 1, 10, 11]], kept[[2, 3, 8, 9]], kept[[4, 5, 6, 7]]]
    for group in groups:
        torch.testing.assert_close(group, group[:1].expand(4))
    assert len({round(float(group[0]), 4) for group in groups}) == 3


def test_labels_are_mixed_as_the_images_are():
    images, labels = GroupedMixup(config(cutmix=0.0, mixup_group=2), CLASSES, SINGLE_PROCESS)(
        *batch(6), step=0, batch_size=6
    )
    own = torch.nn.functional.one_hot(torch.arange(6) % CLASSES, CLASSES).float()
    share = weights(images)[:, None]
    torch.testing.assert_close(labels, own * share + own.flip(0) * (1 - share))


@pytest.mark.parametrize("group", [0, 6, 8, 64])
def test_processes_mix_as_one_does(group):
    settings = config(mixup_group=group)
    whole = GroupedMixup(settings, CLASSES, SINGLE_PROCESS)(*batch(24), step=7, batch_size=24)
    for size in (2, 3, 5):
        for rank in range(size):
            places = torch.from_numpy(rank_indices(24, rank, size))
            images, labels = batch(24)
            mixed = GroupedMixup(settings, CLASSES, replace(SINGLE_PROCESS, rank=rank, size=size))
            part = mixed(images[places], labels[places], step=7, batch_size=24)
            for own, of_whole in zip(part, whole, strict=True):
                assert torch.equal(own, of_whole[places])


def test_a_group_as_large_as_the_batch_draws_once_as_before():
    images = [
        GroupedMixup(config(mixup_group=group), CLASSES, SINGLE_PROCESS)(*batch(16), step=2, batch_size=16)[0]
        for group in (0, 16, 128)
    ]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_an_odd_batch_is_left_as_it_is():
    images, labels = GroupedMixup(config(), CLASSES, SINGLE_PROCESS)(*batch(5), step=0, batch_size=5)
    assert torch.equal(images, batch(5)[0])
    assert torch.equal(labels, batch(5)[1])
