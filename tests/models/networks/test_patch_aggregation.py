"""Patch aggregation: equal to the release's forward pass, the sparse pass equal to the dense one, and its start."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from beitcli.config.architecture import SIZES, Aggregation, Architecture, Positions
from beitcli.models.networks.beit import MaskedImageModel, forward_flops
from beitcli.models.networks.patch_aggregation import PatchAggregationModel, aggregation_flops
from tests.helpers.foreign_models import ReleasedAggregating, randomized

VOCABULARY = 64
HIDDEN = 6
KINDS: dict[str, tuple[Positions, float, Literal["shared", "own"]]] = {
    "shared head": ("shared", 0.1, "shared"),
    "own head": ("shared", 0.1, "own"),
    "absolute positions": ("absolute", 0.0, "shared"),
}


def tiny(positions: Positions = "shared", layer_scale: float = 0.1) -> Architecture:
    return Architecture(image_size=(64, 64), width=48, depth=3, heads=4, positions=positions, layer_scale=layer_scale)


def model(kind: str = "shared head", drop_path: float = 0.0, blocks: int = 2) -> PatchAggregationModel:
    positions, layer_scale, head = KINDS[kind]
    how = Aggregation(after=2, blocks=blocks, head=head)
    made = randomized(PatchAggregationModel(tiny(positions, layer_scale), VOCABULARY, how, drop_path))
    assert isinstance(made, PatchAggregationModel)
    return made


def released(kind: str, blocks: int) -> ReleasedAggregating:
    """The release's model with the same weights, by its own names."""
    positions, layer_scale, head = KINDS[kind]
    absolute = positions == "absolute"
    theirs = ReleasedAggregating(
        VOCABULARY, after=2, extra=blocks, shared=head == "shared", use_abs_pos_emb=absolute,
        use_shared_rel_pos_bias=not absolute, init_values=layer_scale or None,
    )  # fmt: skip
    ours = model(kind, blocks=blocks).state_dict()
    theirs.load_state_dict({name.replace("token_head.", "lm_head."): tensor for name, tensor in ours.items()})
    return theirs


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def some_mask(count: int = 2) -> torch.Tensor:
    order = torch.rand(count, 16, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    return torch.zeros(count, 16, dtype=torch.bool).scatter_(1, order[:, :HIDDEN], True)


def indices(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero()[:, 1].view(len(mask), -1)


def both_losses(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    tokens = torch.randint(0, VOCABULARY, (2 * HIDDEN,), generator=torch.Generator().manual_seed(4))
    return F.cross_entropy(outputs[0], tokens) + F.cross_entropy(outputs[1], tokens)


@pytest.mark.parametrize("predicted", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_loss_and_gradients_are_those_of_the_releases_forward(kind, blocks, predicted):
    ours, theirs = model(kind, blocks=blocks).train(), released(kind, blocks).train()
    images, mask = pictures(), some_mask()
    found, wanted = ours(images, mask, indices(mask) if predicted else None), theirs(images, mask)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    loss, expected = both_losses(found), both_losses(wanted)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    expected.backward()
    gradients = {
        name if name.startswith("cls_pt") else name.replace("lm_head", "token_head"): parameter.grad
        for name, parameter in theirs.named_parameters()
    }
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_to_predict_alone_equal_the_whole_with_drop_path_too(kind):
    ours, images, mask = model(kind, drop_path=0.5).train(), pictures(4), some_mask(4)
    uniforms = torch.rand(4, 2 * 5, generator=torch.Generator().manual_seed(5))
    sparse = ours(images, mask, indices(mask), uniforms)
    dense = ours(images, mask, None, uniforms)
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    every = torch.arange(16).expand(4, 16)
    for one, other in zip(ours(images, mask, every, uniforms), sparse, strict=True):
        torch.testing.assert_close(one.view(4, 16, -1)[mask], other, atol=1e-5, rtol=1e-5)


def test_uniforms_of_the_extra_blocks_come_last_and_decide_what_they_drop():
    ours, images, mask = model(drop_path=0.5).train(), pictures(), some_mask()
    assert [block.drop_path1.drop_prob for block in ours.cls_pt_layers] == pytest.approx([1 / 3, 0.5])
    kept = torch.full((2, 10), 0.01)
    dropped = kept.index_fill(1, torch.tensor([6, 7, 8, 9]), 0.99)
    last, whole = ours(images, mask, indices(mask), kept)
    same, bare = ours(images, mask, indices(mask), dropped)
    assert torch.equal(last, same)
    assert not torch.allclose(whole, bare)
    with torch.no_grad():  # with both extra blocks dropped, what is left is the patches of block 2
        early = ours.block_outputs(ours.embed_masked(images, mask), [1], kept[:, :6])[0][:, 1:]
        torch.testing.assert_close(bare, ours.token_head(ours.norm(early))[mask], atol=1e-5, rtol=1e-5)


def test_the_second_prediction_sees_the_last_block_by_its_class_token_only():
    ours, images, mask = model().train(), pictures(), some_mask()
    ours(images, mask)[1].square().mean().backward()
    reached = {name for name, each in ours.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    assert {f"blocks.{number}.mlp.fc1.weight" for number in range(3)} <= reached
    assert {"cls_token", "mask_token", "patch_embed.proj.weight", "cls_pt_layers.1.attn.proj.weight"} <= reached
    with torch.no_grad():
        before = ours(images, mask)
        class_only = ours.blocks[2].forward

        def other_patches(hidden, *rest):
            made = class_only(hidden, *rest)
            return torch.cat((made[:, :1], made[:, 1:] + 1), dim=1)

        ours.blocks[2].forward = other_patches
        after = ours(images, mask)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


@torch.no_grad()
def test_the_extra_blocks_start_as_in_the_release_and_the_rest_as_without_them():
    torch.manual_seed(0)
    plain = MaskedImageModel(tiny(), VOCABULARY, 0.1)
    torch.manual_seed(0)
    ours = PatchAggregationModel(tiny(), VOCABULARY, Aggregation(after=2, head="own"), 0.1)
    state = ours.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    bound = 48**-0.5  # of torch's own initialization, uniform by the inputs
    for number, layer in enumerate((3, 4)):  # numbered on from block 2
        block = ours.cls_pt_layers[number]
        assert block.mlp.fc1.weight.abs().max() == pytest.approx(bound, rel=0.01)
        assert block.attn.proj.weight.abs().max() == pytest.approx(bound / (2 * layer) ** 0.5, rel=0.01)
        assert block.mlp.fc2.weight.abs().max() == pytest.approx(192**-0.5 / (2 * layer) ** 0.5, rel=0.01)
        assert (block.gamma_1 == 0.1).all()
    assert 0.0195 < ours.cls_pt_lm_head.weight.abs().max() <= 0.02
    assert not ours.cls_pt_lm_head.bias.any()


def test_parameters_of_base_are_the_backbones_and_two_blocks():
    with torch.device("meta"):
        architecture = Architecture(positions="shared", layer_scale=0.1, **SIZES["base"])
        made = PatchAggregationModel(architecture, 8192, Aggregation(after=9))
    block = 3 * 768**2 + 2 * 768 + 768**2 + 768 + 2 * 4 * 768**2 + 4 * 768 + 768 + 4 * 768 + 2 * 768
    assert sum(each.numel() for each in made.parameters()) == 91_965_776 + 2 * block


@pytest.mark.parametrize("kind", KINDS)
def test_flops_equal_those_that_torch_counts(kind):
    ours, architecture = model(kind), tiny(KINDS[kind][0], KINDS[kind][1])
    with FlopCounterMode(display=False) as counter:
        ours(pictures(), some_mask())
    flops = forward_flops(architecture, HIDDEN, VOCABULARY)
    flops += aggregation_flops(architecture, ours.aggregation, HIDDEN, VOCABULARY)
    assert 2 * flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_bf16_residual_stream_goes_through_the_extra_blocks():
    torch.manual_seed(0)
    wide, narrow = (
        PatchAggregationModel(tiny(), VOCABULARY, Aggregation(after=2), residual_dtype=dtype).eval()
        for dtype in (None, torch.bfloat16)
    )
    narrow.load_state_dict(wide.state_dict())
    seen = []
    narrow.cls_pt_layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    images, mask = pictures(), some_mask()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(narrow(images, mask), wide(images, mask), strict=True):
            torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)
    assert seen == [torch.bfloat16]
