"""timm's vision Transformers under heads of segmentation and detection: maps, layers of decay, sizes, gradients."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from beitcli.config.tasks.detect import HEADS as DETECTION_HEADS
from beitcli.config.tasks.segment import HEADS
from beitcli.engine.segmentation.task import pixel_losses
from beitcli.models.networks.timm_dense import TimmDetector, TimmSegmenter, new_detector, new_segmenter
from beitcli.models.networks.timm_vit import architecture_of
from beitcli.runtime.compute.optimizer import parameter_groups
from tests.helpers.foreign_models import SMALL_VIT, VITS, randomized

MODELS = {name: (name, arguments) for name, arguments in VITS.items()} | {
    "registers": ("vit_small_patch16_224", SMALL_VIT | {"reg_tokens": 4}),
    "registers without positions": ("vit_small_patch16_224", SMALL_VIT | {"reg_tokens": 4, "no_embed_class": True}),
}
each_model = pytest.mark.parametrize("which", MODELS)
OBLONG = (48, 32)


def segmenter(which, size=(32, 32), head="setr-pup"):
    name, arguments = MODELS[which]
    return randomized(new_segmenter(architecture_of(name, arguments, size), 3, head))


def detector(which, size=(32, 32), head="faster-rcnn"):
    name, arguments = MODELS[which]
    return randomized(new_detector(architecture_of(name, arguments, size), 2, head, 16, 8))


def theirs_of(ours, which, size=(32, 32)):
    """timm's own model with the weights of ours."""
    name, arguments = MODELS[which]
    model = timm.create_model(name, **arguments | {"img_size": size, "num_classes": 0}).eval()
    found = model.load_state_dict(ours.state_dict(), strict=False)
    assert [key for key in found.missing_keys if not key.startswith(("norm.", "fc_norm.", "attn_pool."))] == []
    assert [key for key in found.unexpected_keys if not key.startswith(("decode_head.", "detection."))] == []
    return model


def noise(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@each_model
@pytest.mark.parametrize("size", [(32, 32), OBLONG])
@torch.no_grad()
def test_maps_are_the_patches_of_timms_blocks(which, size):
    ours = segmenter(which, size)
    assert isinstance(ours, TimmSegmenter)
    theirs = theirs_of(ours, which, size)
    outputs = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    theirs.forward_features(noise(size))
    depth, grid = (
        len(theirs.blocks),
        (size[0] // theirs.patch_embed.patch_size[0], size[1] // theirs.patch_embed.patch_size[1]),
    )
    assert ours.out_indices == {3: (0, 1, 1, 2), 2: (0, 0, 0, 1)}[depth]
    maps = ours.maps(noise(size))
    intermediates = theirs.forward_intermediates(
        noise(size), indices=list(range(depth)), norm=False, intermediates_only=True
    )
    for block, own in zip(ours.out_indices, maps, strict=True):
        assert own.shape == (2, 24, *grid)
        assert torch.equal(own, intermediates[block])
        patches = outputs[block][:, theirs.num_prefix_tokens :]
        assert torch.equal(own, patches.transpose(1, 2).unflatten(2, grid))
    found = detector(which, size)
    last = theirs_of(found, which, size).forward_intermediates(
        noise(size), indices=1, norm=False, intermediates_only=True
    )
    assert isinstance(found, TimmDetector)
    assert torch.equal(found.map(noise(size)), last[0])


@torch.no_grad()
def test_maps_are_timms_intermediate_layers():
    ours = segmenter("vit_small_patch16_224")
    layers = theirs_of(ours, "vit_small_patch16_224").get_intermediate_layers(
        noise((32, 32)), n=[0, 1, 2], reshape=True
    )
    for block, own in zip(ours.out_indices, ours.maps(noise((32, 32))), strict=True):
        assert torch.equal(own, layers[block])


@each_model
@pytest.mark.parametrize("make", [segmenter, detector])
def test_every_parameter_has_the_rate_of_its_layer(which, make):
    model = make(which)
    depth = len(model.blocks)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in parameter_groups(model, 0.05, 0.5) for p in g["params"]}
    assert scales.keys() == set(names.values())
    for name, scale in scales.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else depth + 1 if name.startswith(("decode_head.", "detection.")) else 0
        assert scale == 0.5 ** (depth + 1 - layer), name
    spared = {names[id(p)] for g in parameter_groups(model, 0.05, 0.5) if not g["weight_decay"] for p in g["params"]}
    assert {"pos_embed", "cls_token", "dist_token", "reg_token"} & scales.keys() <= spared


@each_model
@pytest.mark.parametrize("head", HEADS.names())
def test_gradient_reaches_every_parameter_of_a_segmenter(which, head):
    model = segmenter(which, head=head).train()
    side = model.architecture.image_size
    targets = torch.randint(0, 3, (2, *side), generator=torch.Generator().manual_seed(0))
    uniforms = torch.full((2, model.num_uniforms), 0.9)
    sum(pixel_losses(model(noise(side), uniforms), targets)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("head", DETECTION_HEADS.names())
def test_gradient_reaches_the_backbone_of_a_detector(head):
    model = detector("deit_tiny_distilled_patch16_224", head=head).train()
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1]), "masks": torch.ones(1, 32, 32, dtype=torch.uint8)}] * 2
    losses = model(noise((32, 32)), targets, torch.full((2, 2), 0.5))
    sum(losses.values()).backward()
    backbone = [(name, p) for name, p in model.named_parameters() if not name.startswith("detection.")]
    assert [name for name, p in backbone if p.grad is None or not p.grad.abs().sum() > 0] == []
