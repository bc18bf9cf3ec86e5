"""timm's vision Transformers as they are: outputs, attention, features and groups against timm's own, sizes, faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.build import open_backbone, open_classifier
from beitcli.models.checkpoints.open import open_model
from beitcli.models.checkpoints.timm_references import arguments_in, random_init_base
from beitcli.models.networks.attention_maps import attention_rows
from beitcli.models.networks.timm_vit import TimmViT
from beitcli.runtime.compute.optimizer import parameter_groups
from tests.helpers.foreign_models import VITS, timm_vit

each_model = pytest.mark.parametrize("name", VITS)


def noise(size=32, images=2):
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(3))


@each_model
@torch.no_grad()
def test_outputs_equal_timms(tmp_path, name):
    theirs = timm_vit(tmp_path, name)
    ours, checkpoint = open_classifier(str(tmp_path))
    assert (checkpoint.format, checkpoint.kind, checkpoint.outputs) == ("timm", "classifier", 5)
    assert torch.equal(ours(noise()), theirs(noise()))
    shape = checkpoint.architecture
    assert (shape.image_size, shape.grid, shape.width, shape.depth) == ((32, 32), (4, 4), 24, len(theirs.blocks))


@each_model
@torch.no_grad()
def test_blocks_give_timms_intermediates(tmp_path, name):
    theirs = timm_vit(tmp_path, name)
    ours, _ = open_backbone(str(tmp_path))
    found = {}
    ours.forward_block_outputs(noise(), lambda layer, hidden: found.update({layer: hidden}))
    wanted = theirs.forward_intermediates(noise(), output_fmt="NLC", intermediates_only=True)
    assert sorted(found) == list(range(1, len(wanted) + 1))
    for layer, patches in enumerate(wanted, start=1):
        assert torch.equal(found[layer][:, ours.num_prefix_tokens :], patches)
    assert not any(block._forward_hooks for block in ours.blocks)


@pytest.mark.parametrize("layer", [0, 1, -1])
@torch.no_grad()
def test_attention_equals_q_times_k_by_hand(tmp_path, layer):
    theirs = timm_vit(tmp_path, "vit_small_patch16_224")
    ours, _ = open_backbone(str(tmp_path))
    rows = attention_rows(ours, noise(), layer)
    hidden = theirs.patch_embed(noise())
    hidden = torch.cat((theirs.cls_token.expand(2, -1, -1), hidden), dim=1) + theirs.pos_embed
    for block in theirs.blocks[: layer % 3]:
        hidden = block(hidden)
    attention = theirs.blocks[layer].attn
    qkv = attention.qkv(theirs.blocks[layer].norm1(hidden)).reshape(2, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(-2, -1) / 12**0.5
    torch.testing.assert_close(rows, scores.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention_rows(ours, noise(), layer, [3, 0]), rows[:, :, [3, 0]])


@each_model
@torch.no_grad()
def test_attention_has_one_place_before_the_patches(tmp_path, name):
    timm_vit(tmp_path, name)
    ours, checkpoint = open_backbone(str(tmp_path))
    rows = attention_rows(ours, noise())
    assert rows.shape == (2, checkpoint.architecture.heads, 17, 17)
    first = 0 if ours.num_prefix_tokens else 1  # without a class token it attends to nothing
    torch.testing.assert_close(rows.sum(dim=-1)[..., first:], torch.ones(2, rows.shape[1], 17 - first))
    assert ours.blocks[-1].attn.fused_attn == timm.create_model(name, **VITS[name]).blocks[-1].attn.fused_attn


@torch.no_grad()
def test_tokens_before_the_patches_count_together(tmp_path):
    """DeiT's distilled model has two: their shares are added, and the query of place 0 is the class token's."""
    timm_vit(tmp_path, "deit_tiny_distilled_patch16_224")
    ours, _ = open_backbone(str(tmp_path))
    (whole,) = ours.attention(noise(), [2])
    assert whole.shape[-2:] == (18, 18)
    rows = attention_rows(ours, noise(), 2)
    torch.testing.assert_close(rows[:, :, 0, 0], whole[:, :, 0, 0] + whole[:, :, 0, 1])
    torch.testing.assert_close(rows[:, :, 1:, 1:], whole[:, :, 2:, 2:])


def test_positions_are_resampled_by_timm(tmp_path):
    theirs = timm_vit(tmp_path, "vit_small_patch16_224")
    ours, checkpoint = open_classifier(str(tmp_path), (48, 64))
    wanted = resample_abs_pos_embed(theirs.pos_embed, new_size=[6, 8], old_size=[4, 4], num_prefix_tokens=1)
    assert torch.equal(ours.pos_embed, wanted)
    assert ours.architecture.grid == (6, 8)
    assert any("pos_embed" in warning for warning in checkpoint.warnings)
    assert ours(torch.zeros(1, 3, 48, 64)).shape == (1, 5)


@each_model
def test_groups_of_layer_decay_are_timms(tmp_path, name):
    theirs = timm_vit(tmp_path, name)
    ours, _ = open_classifier(str(tmp_path))
    names = {id(parameter): key for key, parameter in ours.named_parameters()}
    their_names = {id(parameter): key for key, parameter in theirs.named_parameters()}

    def plain(groups, known):
        return sorted((g["lr_scale"], g["weight_decay"], sorted(known[id(p)] for p in g["params"])) for g in groups)

    own = parameter_groups(ours, 0.05, 0.5)
    assert plain(own, names) == plain(parameter_groups(theirs, 0.05, 0.5), their_names)
    scales = {round(group["lr_scale"], 6) for group in own}
    assert max(scales) == 1.0
    assert min(scales) == 0.5 ** (len(ours.blocks) + 1)
    assert sorted(names.values()) == sorted(each for _, _, part in plain(own, names) for each in part)


def test_a_shape_without_weights_needs_no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reference = "timm/vit_tiny_patch16_224@random,patch_size=8,depth=2,embed_dim=24,num_heads=2"
    first, checkpoint = open_backbone(reference, (32, 32), seed=1)
    again, _ = open_backbone(reference, (32, 32), seed=1)
    other, _ = open_backbone(reference, (32, 32), seed=2)
    assert isinstance(first, TimmViT)
    assert (first.architecture.grid, checkpoint.warnings) == ((4, 4), ())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)
    beit, _ = open_backbone("timm/beit_base_patch16_224@random,depth=1,embed_dim=24,num_heads=2", (32, 32))
    assert not isinstance(beit, TimmViT)
    assert beit.architecture.positions == "per-block"


def test_arguments_behind_random_are_read():
    assert arguments_in("timm/a@random,patch_size=8,init_values=1e-5,global_pool=avg,class_token=false") == {
        "patch_size": 8, "init_values": 1e-5, "global_pool": "avg", "class_token": False,
    }  # fmt: skip
    assert random_init_base("timm/a.b@random,depth=2") == "timm/a.b"
    assert random_init_base("runs/x@random") == "runs/x"
    for weights in ("runs/x", "hf://o/n@randomised", "hf://o/n@main", "random", "@random"):
        assert random_init_base(weights) is None


@pytest.mark.parametrize(("reference", "said"), [
    ("timm/vit_tiny_patch16_224@random,depth", "'depth'"),
    ("timm/vit_tiny_patch16_224@random,dpth=3", "dpth"),
    ("timm/vit_tiny_patch16_224@random,embed_dim=25", "timm cannot make"),
    ("timm/resnet50@random", "no plain vision Transformer"),
    ("timm/vit_tiny_patch16_223", "Did you mean"),
])  # fmt: skip
def test_what_timm_cannot_make_is_refused(reference, said):
    with pytest.raises((StorageError, UsageError)) as caught:
        open_model(reference)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_weights_of_another_shape_are_refused(tmp_path):
    timm_vit(tmp_path, "vit_small_patch16_224")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["model_args"]["depth"] = 4
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StorageError, match="tensors missing"):
        open_classifier(str(tmp_path))


@torch.no_grad()
def test_normalization_and_crop_are_those_of_the_settings(tmp_path):
    timm_vit(tmp_path, "vit_small_patch16_224")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.8}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    found = open_model(str(tmp_path))
    assert found.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.crop.crop_pct == 0.8
    assert np.isclose(found.parameters, sum(p.numel() for p in open_classifier(str(tmp_path))[0].parameters()))
