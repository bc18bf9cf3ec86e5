"""Mixup and CutMix in fixed groups of the global batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.loading.sampler import rank_indices
from beitcli.engine.classification.mixing import GroupedMixup, require_pairs
from beitcli.engine.trainer.data import require_an_image_each
from beitcli.errors import UsageError
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


@pytest.mark.parametrize("settings", [{"cutmix": 0.0}, {"mixup": 0.0}, {"mixup_group": 2}, {"mixup_group": 4}])
@pytest.mark.parametrize("size", [3, 7])
def test_all_pairs_of_an_odd_batch_are_mixed_and_the_middle_image_stays(size, settings):
    own = torch.nn.functional.one_hot(batch(size)[1], CLASSES).float()
    moved = torch.zeros(size, dtype=torch.bool)
    for step in range(4):
        images, labels = GroupedMixup(config(**settings), CLASSES, SINGLE_PROCESS)(
            *batch(size), step=step, batch_size=size
        )
        middle = size // 2
        assert torch.equal(images[middle], batch(size)[0][middle])
        assert torch.equal(labels[middle], own[middle])
        pairs = torch.arange(size) != middle
        share = weights(images)[:, None]
        torch.testing.assert_close(labels[pairs], (own * share + own.flip(0) * (1 - share))[pairs])
        moved |= (images != batch(size)[0]).flatten(1).any(1)
    assert moved.tolist() == pairs.tolist()


@pytest.mark.parametrize(
    ("size", "processes", "said"),
    [
        (1, 1, "a batch of 1 has 0 for 1 process."),
        (7, 2, "which 2 processes cannot share of a batch of 7."),
        (6, 4, "a batch of 6 has 3 for 4 processes."),
        (7, 4, "a batch of 7 has 3 for 4 processes."),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused_with_a_way_out(size, processes, said):
    with pytest.raises(UsageError) as caught:
        require_pairs(config(batch_size=size), processes)
    assert caught.value.message.endswith(said)
    assert "--mixup 0 --cutmix 0" in caught.value.hint
    require_pairs(config(batch_size=size, mixup=0.0, cutmix=0.0), processes)


@pytest.mark.parametrize(("size", "processes"), [(7, 1), (6, 3), (6, 1), (4, 2)])
def test_a_batch_that_can_be_mixed_is_not_refused(size, processes):
    settings = config(batch_size=size)
    require_pairs(settings, processes)
    for rank in range(processes):
        places = torch.from_numpy(rank_indices(size, rank, processes))
        mixed = GroupedMixup(settings, CLASSES, replace(SINGLE_PROCESS, rank=rank, size=processes))
        moved = torch.zeros(len(places), dtype=torch.bool)
        for step in range(4):
            images, labels = (each[places] for each in batch(size))
            moved |= (mixed(images, labels, step=step, batch_size=size)[0] != batch(size)[0][places]).flatten(1).any(1)
        assert moved.tolist() == (places != size - 1 - places).tolist()


def test_a_batch_of_fewer_images_than_processes_is_refused_for_that_alone():
    require_pairs(config(batch_size=3), 4)
    with pytest.raises(UsageError, match="leaves some of 4 processes without an image"):
        require_an_image_each(3, replace(SINGLE_PROCESS, size=4))


def test_a_run_of_single_images_that_an_earlier_version_began_goes_on():
    require_pairs(config(batch_size=1, resume=True, out="run"), 1)
    images, labels = GroupedMixup(config(), CLASSES, SINGLE_PROCESS)(*batch(1), step=0, batch_size=1)
    assert torch.equal(images, batch(1)[0])
    assert torch.equal(labels, batch(1)[1])
