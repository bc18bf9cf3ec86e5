"""Segmentation heads: beside transformers' UPerNet, counted and computed by hand, and every parameter learns."""

from __future__ import annotations

import pytest
import torch
from transformers import BeitConfig, BeitForSemanticSegmentation

from beitcli.config.tasks.segment import HEADS
from beitcli.heads.convolution import resize_map
from beitcli.heads.segmentation.setr_pup import SetrPup, UpsamplingHead
from beitcli.heads.segmentation.upernet import UPerNet

WIDTH, CLASSES = 48, 5


def maps_of(grid: tuple[int, int] = (4, 4), images: int = 2, width: int = WIDTH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(images, width, *grid, generator=generator) for _ in range(4)]


def theirs_to_ours(name: str) -> str:
    """transformers' name of a tensor of neck and heads, in the release's words."""
    for old, new in (
        ("fpn.fpn1.conv_transpose1", "fpn1.0"),
        ("fpn.fpn1.normalization", "fpn1.1"),
        ("fpn.fpn1.conv_transpose2", "fpn1.3"),
        ("fpn.fpn2", "fpn2.0"),
        ("auxiliary_head.", "auxiliary."),
        ("decode_head.", ""),
        ("psp_bottleneck", "bottleneck"),
        (".conv.convolution", ".1.conv"),
        (".conv.normalization", ".1.bn"),
        ("psp_modules.blocks", "psp_modules"),
        (".convolution", ".conv"),
        (".normalization", ".bn"),
        ("classifier", "conv_seg"),
    ):
        name = name.replace(old, new)
    return name


@pytest.fixture(scope="module")
def transformers_model() -> BeitForSemanticSegmentation:
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, image_size=64,
        out_indices=[1, 2, 3, 4], num_labels=CLASSES, use_relative_position_bias=True,
    )  # fmt: skip
    model = BeitForSemanticSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "normalization.weight", "normalization.bias")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("grid", [(4, 4), (5, 7)])
def test_upernet_equals_transformers_with_its_weights(transformers_model, grid):
    theirs = {name: t for name, t in transformers_model.state_dict().items() if not name.startswith("beit.")}
    ours = UPerNet(WIDTH, 16, CLASSES).eval()
    ours.load_state_dict({theirs_to_ours(name): tensor for name, tensor in theirs.items()})
    maps = maps_of(grid)
    with torch.no_grad():
        levels = transformers_model.fpn(maps)
        expected = transformers_model.decode_head(levels)
        auxiliary = transformers_model.auxiliary_head(levels)
        for level, own in zip(levels, ours.pyramid(maps), strict=True):
            torch.testing.assert_close(own, level)
        torch.testing.assert_close(ours(maps)[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.auxiliary(ours.pyramid(maps)[2]), auxiliary, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for name, p in transformers_model.named_parameters() if not name.startswith("beit.")
    )


def test_upernet_pyramid_is_at_4_2_1_and_half_of_the_grid():
    levels = UPerNet(WIDTH, 16, CLASSES).pyramid(maps_of((6, 8)))
    assert [tuple(level.shape) for level in levels] == [
        (2, WIDTH, 24, 32), (2, WIDTH, 12, 16), (2, WIDTH, 6, 8), (2, WIDTH, 3, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(("patch_size", "side"), [(16, 64), (8, 32), (4, 16)])
def test_setr_pup_doubles_up_to_the_image(patch_size, side):
    head = SetrPup(WIDTH, patch_size, CLASSES)
    assert [tuple(each.shape) for each in head(maps_of())] == [(2, CLASSES, side, side)] + 3 * [(2, CLASSES, 16, 16)]


def test_setr_pup_has_the_parameters_counted_by_hand():
    norm, first, further, last = 2 * WIDTH, 9 * WIDTH * 256 + 2 * 256, 9 * 256 * 256 + 2 * 256, 256 * CLASSES + CLASSES
    main, auxiliary = norm + first + 3 * further + last, norm + first + last
    assert sum(p.numel() for p in SetrPup(WIDTH, 16, CLASSES).parameters()) == main + 3 * auxiliary


def test_setr_pup_with_hand_set_weights_gives_the_value_computed_by_hand():
    """A constant map stays constant but for the zeros that 3x3 convolutions see beyond the edge."""
    head = UpsamplingHead(2, 1, 2, 2).eval()
    for name, parameter in head.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.zeros_(parameter)
            parameter.data[:, 0, 1, 1] = 3.0  # the middle of the kernel, of the first channel
        elif name == "conv_seg.weight":
            torch.nn.init.constant_(parameter, 1 / 256)
        elif name == "conv_seg.bias":
            torch.nn.init.constant_(parameter, 0.5)
    maps = torch.tensor([5.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    normed = 2 / (4 + 1e-6) ** 0.5  # (5 - 3) / std, of two channels 2 from their mean
    value = 0.5 + 9 * normed / (1 + 1e-5)  # two convolutions of 3, two batch norms of variance 1
    logits = head(maps)
    assert logits.shape == (1, 1, 12, 12)
    torch.testing.assert_close(logits, torch.full_like(logits, value), rtol=1e-6, atol=1e-6)
    swapped = head(maps.flip(1))  # the first channel below the mean: ReLU takes all of it
    torch.testing.assert_close(swapped, torch.full_like(swapped, 0.5))


@pytest.mark.parametrize("name", HEADS.names())
def test_head_gives_auxiliary_logits_in_training_only(name):
    head = HEADS.load(name)(WIDTH, 16, CLASSES)
    assert len(head(maps_of())) >= 1
    assert len(head.eval()(maps_of())) == 1


@pytest.mark.parametrize(("name", "number"), [("upernet", 2), ("setr-pup", 4)])
def test_auxiliary_heads_are_those_of_mmseg(name, number):
    assert len(HEADS.load(name)(WIDTH, 16, CLASSES)(maps_of())) == number


def test_resize_map_is_bilinear_by_pixel_areas():
    line = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert resize_map(line, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
