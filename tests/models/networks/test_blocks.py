"""The blocks' cheaper arithmetic against timm's own: outputs, gradients, drop path, kernels, precisions."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.beit import Attention, Beit, Block

from beitcli.config.architecture import Architecture
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier

ARCHITECTURES = [("absolute", 0.0), ("shared", 0.1), ("per-block", 0.1)]


def model(positions: str, layer_scale: float, drop_path: float = 0.0) -> MaskedImageModel:
    torch.manual_seed(0)
    architecture = Architecture(
        image_size=(64, 48), width=32, depth=3, heads=2, positions=positions, layer_scale=layer_scale
    )
    made = MaskedImageModel(architecture, 11, drop_path)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.train()


def pictures(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def masked(count: int = 4, hidden: int = 5) -> torch.Tensor:
    order = torch.rand(count, 12, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    return torch.zeros(count, 12, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def timms_features(of: MaskedImageModel, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same weights through timm's own blocks, every row of each: (B, L, D)."""
    for block in of.blocks:
        block.__class__, block.attn.__class__ = Block, Attention
    patches = torch.where(mask.unsqueeze(-1), of.mask_token, of.patch_embed(images))
    hidden = of.embed(patches)
    shared = of.rel_pos_bias() if of.rel_pos_bias is not None else None
    for block in of.blocks:
        hidden = block(hidden, shared_rel_pos_bias=shared)
    return of.norm(hidden)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize(("positions", "layer_scale"), ARCHITECTURES)
def test_only_the_patches_asked_for_give_the_same_logits_and_gradients(positions, layer_scale, drop_path):
    ours, images, mask = model(positions, layer_scale, drop_path), pictures(), masked()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(3)
    logits = ours(images, mask, mask.nonzero()[:, 1].view(4, 5))
    torch.manual_seed(3)
    expected = theirs.token_head(timms_features(theirs, images, mask)[:, 1:][mask])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for each in (logits, expected):
        each.square().mean().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if gradients[name].grad is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_images_may_be_asked_for_different_patches_in_any_order():
    ours, images = model("shared", 0.1).eval(), pictures()
    predicted = torch.tensor([[3, 0], [1, 2], [11, 5], [7, 7]])
    with torch.no_grad():
        every = ours.hidden_features(images, None)
        chosen = ours.hidden_features(images, None, predicted)
    for image in range(4):
        for place in range(2):
            torch.testing.assert_close(chosen[image, place], every[image, predicted[image, place]])


@pytest.mark.parametrize("rate", [0.3, 0.999999])
def test_drop_path_strikes_the_branches_that_timm_strikes(rate):
    ours = model("shared", 0.1, rate)
    theirs = copy.deepcopy(ours)
    for seed in range(5):
        torch.manual_seed(seed)
        features = ours.hidden_features(pictures(), masked())
        torch.manual_seed(seed)
        expected = timms_features(theirs, pictures(), masked())[:, 1:]
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("positions", ["absolute", "per-block"])
def test_a_classifier_equals_timms_model_of_the_same_weights(positions):
    torch.manual_seed(0)
    architecture = Architecture(image_size=(64, 64), width=32, depth=2, heads=2, positions=positions, layer_scale=0.1)
    ours = Classifier(architecture, 5)
    theirs = Beit(
        img_size=64, embed_dim=32, depth=2, num_heads=2, num_classes=5, init_values=0.1,
        use_abs_pos_emb=positions == "absolute", use_rel_pos_bias=positions == "per-block",
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 64, 64)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_fp32(dtype):
    ours, images, mask = model("shared", 0.1), pictures(), masked()
    predicted = mask.nonzero()[:, 1].view(4, 5)
    exact = ours(images, mask, predicted)
    with torch.autocast("cpu", dtype=dtype):
        rough = ours(images, mask, predicted)
    assert rough.dtype == dtype
    assert (rough.float() - exact).abs().max() <= 0.05 * exact.abs().max()
