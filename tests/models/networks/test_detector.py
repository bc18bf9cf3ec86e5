"""The detector: shapes and size of the pyramid, gradients, and samples that follow from the image alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from beitcli.config.architecture import Architecture
from beitcli.config.tasks import task_of_head
from beitcli.config.tasks.detect import TASK
from beitcli.heads.detection.faster_rcnn import KeyedSampler
from beitcli.heads.simple_pyramid import SimplePyramid
from beitcli.models.checkpoints.head_keys import head_kind
from beitcli.models.checkpoints.key_mapping import detect_key_mapping
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.detector import Detector

SHAPE: dict[str, Any] = {"image_size": (32, 48), "patch_size": 8, "width": 32, "depth": 2, "heads": 4}


def detector(positions: str = "absolute", regions: int = 16, **how: Any) -> Detector:
    torch.manual_seed(0)
    architecture = Architecture(**SHAPE, positions=positions, layer_scale=0.1)
    return Detector(architecture, 3, "faster-rcnn", 16, regions, **how)


def batch(*boxes: list[list[float]]) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    images = torch.randn(len(boxes), 3, 32, 48, generator=torch.Generator().manual_seed(1))
    targets = [{"boxes": torch.tensor(each).reshape(-1, 4), "labels": torch.arange(len(each)) % 3} for each in boxes]
    return images, targets


TWO = batch([[2.0, 3.0, 20.0, 25.0], [24.0, 4.0, 40.0, 28.0]], [[10.0, 10.0, 30.0, 30.0]])


def test_pyramid_has_four_resolutions_and_as_many_parameters_as_by_hand():
    levels = SimplePyramid(32, 16)(torch.randn(2, 32, 4, 6))
    assert [tuple(level.shape) for level in levels] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    finest = (32 * 16 * 4 + 16) + 2 * 16 + (16 * 8 * 4 + 8)  # ConvT2, LN, ConvT2
    finer = 32 * 16 * 4 + 16
    narrow = sum(inputs * 16 for inputs in (8, 16, 32, 32))  # 1x1 without bias
    rest = 4 * (2 * 16 + 16 * 16 * 9 + 2 * 16)  # LN, 3x3 without bias, LN
    assert sum(p.numel() for p in SimplePyramid(32, 16).parameters()) == finest + finer + narrow + rest


def test_pyramid_depends_neither_on_the_batch_nor_on_its_statistics():
    torch.manual_seed(0)
    pyramid, maps = SimplePyramid(32, 16), torch.randn(3, 32, 4, 6)
    for whole, alone in zip(pyramid(maps), pyramid(maps[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone)
    assert not list(pyramid.buffers())


def test_map_equals_timm_s_last_features():
    model = detector("per-block").eval()
    theirs = Beit(**timm_arguments(model.architecture, 0.0), num_classes=0).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    images = TWO[0]
    with torch.no_grad():
        (expected,) = theirs.forward_intermediates(images, indices=[1], norm=False, intermediates_only=True)
        torch.testing.assert_close(model.map(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["absolute", "per-block"])
def test_gradient_reaches_every_parameter(positions):
    model = detector(positions, drop_path=0.2)
    losses = model(*TWO)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_mask_head_learns_with_the_rest():
    torch.manual_seed(0)
    architecture = Architecture(**SHAPE, positions="absolute")
    model = Detector(architecture, 3, "mask-rcnn", 16, 16)
    images, targets = TWO
    masked = [each | {"masks": torch.ones(len(each["labels"]), 32, 48, dtype=torch.uint8)} for each in targets]
    losses = model(images, masked)
    assert "loss_mask" in losses
    sum(losses.values()).backward()
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unmoved == []
    assert model.detection.samplers[1].positives > 0
    assert head_kind(model.state_dict()) == "mask-rcnn"
    assert head_kind(detector().state_dict()) == "faster-rcnn"
    model.zero_grad()
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in range(2)]
    none = model(images, [each | {"masks": torch.zeros(0, 32, 48, dtype=torch.uint8)} for each in empty])
    sum(none.values()).backward()
    assert none["loss_mask"] == 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.eval().detection.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = model(images)
    assert found[0]["masks"].shape == (len(found[0]["boxes"]), 1, 28, 28)


def test_images_without_boxes_give_a_gradient_for_every_parameter_too():
    """So that processes whose images are empty share gradients as the others do."""
    model = detector()
    losses = model(*batch([], []))
    assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_losses_of_a_batch_are_the_mean_over_its_images_however_it_is_divided():
    model, (images, targets) = detector(), batch([[2.0, 3.0, 20.0, 25.0]], [], [[10.0, 10.0, 30.0, 30.0]])
    draws = torch.rand(3, 2, generator=torch.Generator().manual_seed(2))
    whole = model(images, targets, draws)
    parts = [model(images[i : i + 1], targets[i : i + 1], draws[i : i + 1]) for i in range(3)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, sum(part[name] for part in parts) / 3)


def test_losses_are_torchvision_s_where_all_that_could_be_is_sampled():
    """Its own sampler, which draws from the global generator, gives the same numbers for the same samples."""
    model = detector(regions=8)
    model.detection.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(256, 0.5)
    model.detection.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(8, 0.25)
    for sampler in model.detection.samplers:
        sampler.begin = lambda draws: None  # type: ignore[method-assign]
        sampler.sampled = 2 * sampler.batch_size_per_image
    torch.manual_seed(5)
    expected = model(*TWO)
    ours = detector(regions=8)
    torch.manual_seed(5)
    for name, loss in ours(*TWO).items():
        torch.testing.assert_close(loss, expected[name])
    assert [sampler.sampled for sampler in ours.detection.samplers] == [512, 16]


def test_boxes_are_computed_in_fp32_whatever_the_backbone_is_in():
    model, draws = detector().eval(), torch.full((2, 2), 0.5)
    model.detection.roi_heads.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert {each["boxes"].dtype for each in model(TWO[0])} == {torch.float32}
    exact = model.train()(*TWO, draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(*TWO, draws)
    for name, loss in low.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.05)


def test_keyed_sampler_draws_for_each_image_alone():
    matched = [torch.tensor([1] * 30 + [0] * 50 + [-1] * 20), torch.tensor([0] * 100)]
    sampler = KeyedSampler(20, 0.25)
    sampler.begin(torch.tensor([0.1, 0.7]))
    positive, negative = sampler(matched)
    assert [int(mask.sum()) for mask in positive] == [5, 0]
    assert [int(mask.sum()) for mask in negative] == [15, 20]
    assert sampler.sampled == 40
    assert not positive[0][30:].any()
    assert not negative[0][:30].any()
    assert not negative[0][80:].any()
    torch.rand(9)  # the global generator counts for nothing
    sampler.begin(torch.tensor([0.7]))
    assert torch.equal(sampler(matched[1:])[1][0], negative[1])
    sampler.begin(torch.tensor([0.2]))
    assert not torch.equal(sampler(matched[1:])[1][0], negative[1])


def test_detections_lie_in_the_image_best_first():
    model = detector().eval()
    model.detection.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = model(TWO[0])
    assert len(found) == 2
    for each in found:
        assert 0 < len(each["boxes"]) <= 100
        assert each["boxes"].min() >= 0
        assert (each["boxes"].amax(dim=0) <= torch.tensor([48.0, 32, 48, 32])).all()
        assert set(each["labels"].tolist()) <= {0, 1, 2}
        assert (each["scores"].diff() <= 0).all()


def test_anchors_and_regions_have_the_scales_of_their_levels():
    model = detector().eval()
    with torch.no_grad():
        model(TWO[0])
    heads = model.detection
    assert [cell[1].tolist()[2] for cell in heads.rpn.anchor_generator.cell_anchors] == [8, 16, 32, 64, 128]
    assert heads.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_layout_knows_a_detector_by_its_names():
    key_mapping = detect_key_mapping(detector().state_dict(), "x")
    assert (task_of_head(key_mapping.head), key_mapping.dropped) == (TASK, ())
    assert all(name.startswith("detection.") for name in key_mapping.head)
