"""The segmenter: which blocks it taps, that its maps are timm's, and that all of it learns."""

from __future__ import annotations

import pytest
import torch
from timm.models.beit import Beit

from beitcli.config.architecture import Architecture, default_out_indices
from beitcli.config.tasks import task_of_head
from beitcli.config.tasks.segment import HEADS, TASK
from beitcli.engine.segmentation.task import pixel_losses
from beitcli.models.checkpoints.key_mapping import detect_key_mapping
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.segmenter import Segmenter

SHAPE = {"image_size": (32, 48), "patch_size": 8, "width": 32, "depth": 3, "heads": 4}


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (6, (1, 2, 3, 5)), (4, (0, 1, 2, 3)), (1, (0, 0, 0, 0))],
)
def test_tapped_blocks_are_the_release_s(depth, blocks):
    assert default_out_indices(depth) == blocks


@pytest.mark.parametrize("positions", ["absolute", "shared", "per-block"])
def test_maps_equal_timm_s_intermediate_features(positions):
    architecture = Architecture(**SHAPE, positions=positions, layer_scale=0.1)
    torch.manual_seed(0)
    theirs = Beit(**timm_arguments(architecture, 0.0), num_classes=0).eval()
    ours = Segmenter(architecture, 3, "setr-pup").eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=[0, 1, 2], norm=False, intermediates_only=True)
        maps = ours.maps(images)
    assert ours.out_indices == (0, 1, 1, 2)
    for block, own in zip(ours.out_indices, maps, strict=True):
        assert own.shape == (2, 32, 4, 6)
        torch.testing.assert_close(own, expected[block], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS.names())
@pytest.mark.parametrize("positions", ["absolute", "per-block"])
def test_gradient_reaches_every_parameter(head, positions):
    torch.manual_seed(0)
    model = Segmenter(Architecture(**SHAPE, positions=positions, layer_scale=0.1), 3, head)
    targets = torch.randint(0, 3, (2, 32, 48))
    sum(pixel_losses(model(torch.randn(2, 3, 32, 48)), targets)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_maps_are_those_of_the_blocks_that_are_named_in_any_order():
    architecture = Architecture(**SHAPE, positions="per-block")
    torch.manual_seed(0)
    usual = Segmenter(architecture, 3, "upernet").eval()
    other = Segmenter(architecture, 3, "upernet", out_indices=(2, -1, 0, 0)).eval()
    other.load_state_dict(usual.state_dict())
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps = other.maps(images)
        embedded = other.embed(other.embed_patches(images))[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        first, _, _, last = usual.maps(images)
    assert all(torch.equal(own, due) for own, due in zip(maps, (last, embedded, first, first), strict=True))


def test_upernet_without_auxiliary_head_gives_the_main_logits_only():
    model = Segmenter(Architecture(**SHAPE), 3, "upernet", head_settings={"auxiliary": None, "pools": [1, 3]}).train()
    assert len(model(torch.randn(2, 3, 32, 48))) == 1
    assert not any("auxiliary" in name for name in model.state_dict())
    assert model.decode_head.bottleneck.conv.in_channels == 3 * 32


def test_pixel_losses_are_the_mean_over_labelled_pixels():
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])  # (1, 2 classes, 1, 2)
    targets = torch.tensor([[[0, 255]]])
    expected = torch.log1p(torch.exp(torch.tensor(-2.0)))
    first, second = pixel_losses([logits, 2 * logits], targets)
    torch.testing.assert_close(first, expected)
    assert second != first
    assert pixel_losses([logits], torch.full_like(targets, 255)) == [0]


def test_segmenter_is_told_by_its_names_and_its_head_has_no_place_in_a_backbone():
    key_mapping = detect_key_mapping(Segmenter(Architecture(**SHAPE), 3, "upernet").state_dict(), "here")
    assert task_of_head(key_mapping.head) == TASK
    assert key_mapping.dropped == ()
    assert all(name.startswith("decode_head.") for name in key_mapping.head)
    assert not any(name.startswith("decode_head.") for name in key_mapping.parts)
