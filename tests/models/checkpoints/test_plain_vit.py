"""Plain ViTs of DeiT, DINO, MoCo v3 and MAE: outputs equal timm's; what is damaged or ambiguous is named."""

from __future__ import annotations

import argparse
import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from beitcli.config.architecture import finetuning_architecture
from beitcli.config.normalization import IMAGENET
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_backbone, open_classifier
from beitcli.models.checkpoints.load_backbone import load_backbone
from beitcli.models.checkpoints.locate import names_a_model
from beitcli.models.checkpoints.open import open_model
from beitcli.models.networks.timm_vit import build_timm
from tests.helpers.vit_layouts import (
    LAYOUTS,
    SHAPE,
    bare,
    deit,
    dino,
    mae,
    moco_v3,
    others,
    prefixed,
    save,
    small_vit,
)


def noise(size=(32, 32)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_features_of_every_layout_equal_timms(tmp_path, layout, legacy):
    theirs = small_vit()
    path = save(LAYOUTS[layout](theirs), tmp_path / "a.pth", legacy=legacy)
    ours, checkpoint = open_backbone(str(path))
    assert (checkpoint.format, checkpoint.kind, checkpoint.outputs) == (layout, "backbone", 0)
    assert checkpoint.normalization == IMAGENET
    shape = checkpoint.architecture
    assert (shape.image_size, shape.patch_size, shape.width, shape.depth) == ((32, 32), 8, 192, 2)
    assert (shape.heads, shape.norm_eps, shape.mlp_ratio) == (3, 1e-6, 4.0)
    assert (ours(noise()) - theirs(noise())).abs().max() <= 1e-6
    found = {}
    ours.forward_block_outputs(noise(), lambda layer, hidden: found.update({layer: hidden[:, 1:]}))
    for layer, wanted in enumerate(theirs.get_intermediate_layers(noise(), n=[0, 1]), start=1):
        torch.testing.assert_close(found[layer], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("arguments", [
    {}, {"qkv_bias": False}, {"init_values": 0.1}, {"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 2},
    {"class_token": False, "global_pool": "avg"}, {"global_pool": "avg"}, {"mlp_ratio": 3.1}, {"img_size": 48},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_logits_equal_timms_whatever_the_shapes_say(tmp_path, arguments):
    theirs = small_vit(num_classes=5, **arguments)
    ours, checkpoint = open_classifier(str(save(deit(theirs), tmp_path / "a.pth")))
    assert (checkpoint.kind, checkpoint.outputs) == ("classifier", 5)
    images = noise(theirs.patch_embed.img_size)
    assert (ours(images) - theirs(images)).abs().max() <= 1e-6
    assert ours.num_prefix_tokens == theirs.num_prefix_tokens
    assert checkpoint.pooling == ("mean" if "global_pool" in arguments else "token")


@torch.no_grad()
def test_a_distilled_deit_averages_its_two_heads(tmp_path):
    theirs = small_vit("deit_tiny_distilled_patch16_224", num_classes=5)
    ours, checkpoint = open_classifier(str(save(deit(theirs), tmp_path / "a.pth")))
    assert checkpoint.architecture.name == "deit_tiny_distilled_patch16_224"
    assert ours.num_prefix_tokens == 2
    assert (ours(noise()) - theirs(noise())).abs().max() <= 1e-6


@torch.no_grad()
def test_layer_scale_of_deit_iii_is_read_under_its_own_name(tmp_path):
    theirs = small_vit(init_values=0.1, no_embed_class=True)
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): t for name, t in theirs.state_dict().items()}
    assert "blocks.0.gamma_1" in state
    ours, _ = open_backbone(str(save({"model": state}, tmp_path / "a.pth")))
    assert (ours(noise()) - theirs(noise())).abs().max() <= 1e-6


@torch.no_grad()
def test_other_files_of_the_same_programs_open_too(tmp_path):
    """DINO's bare backbone, its teacher alone, MoCo v3's linear classifier, a teacher and a student in one dict."""
    theirs = small_vit()
    state = theirs.state_dict()
    classifier = small_vit(num_classes=5)
    for name, document, layout in (
        ("bare", bare(theirs), "vit"),
        ("teacher", {"teacher": dino(theirs)["teacher"]}, "dino"),
        ("both", prefixed("teacher.backbone.", state) | prefixed("student.backbone.", others(state)), "vit"),
        ("partly", prefixed("module.backbone.", state) | {"epoch": torch.zeros(1)}, "vit"),
    ):
        ours, checkpoint = open_backbone(str(save(document, tmp_path / f"{name}.pth")))
        assert checkpoint.format == layout, name
        assert (ours(noise()) - theirs(noise())).abs().max() <= 1e-6
    lincls = {
        "arch": "vit_small",
        "state_dict": prefixed("module.", classifier.state_dict()),
        "best_acc1": torch.ones(1),
    }
    ours, checkpoint = open_classifier(str(save(lincls, tmp_path / "lincls.pth")))
    assert checkpoint.architecture.heads == 12
    save_file({name: t.half() for name, t in state.items()}, tmp_path / "half.safetensors")
    ours, _ = open_backbone(str(tmp_path / "half.safetensors"))
    assert torch.equal(ours.pos_embed, theirs.pos_embed.half().float())


@torch.no_grad()
def test_sizes_are_resampled_as_timm_does(tmp_path):
    theirs = small_vit()
    path = str(save(moco_v3(theirs), tmp_path / "a.pth"))
    ours, checkpoint = open_backbone(path, (48, 64))
    theirs.set_input_size((48, 64))
    assert ours.architecture.grid == (6, 8)
    assert (ours(noise((48, 64))) - theirs(noise((48, 64)))).abs().max() <= 1e-5
    assert any("pos_embed" in warning for warning in checkpoint.warnings)


@torch.no_grad()
def test_positions_are_resized_bilinearly_where_that_is_chosen(tmp_path):
    theirs = small_vit()
    checkpoint = open_model(str(save(moco_v3(theirs), tmp_path / "a.pth")))
    target = finetuning_architecture(checkpoint.architecture, (48, 64))
    model = build_timm(target, 0)
    load_backbone(model, checkpoint.tensors(), checkpoint.architecture, target, reinit=(), how="bilinear")
    grid = theirs.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = interpolate(grid, size=(6, 8), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed[:, 1:], expected)
    assert torch.equal(model.pos_embed[:, :1], theirs.pos_embed[:, :1])


def test_a_file_of_moco_v3_has_its_own_ending(tmp_path):
    path = save(moco_v3(small_vit()), tmp_path / "vit-s.pth.tar")
    assert names_a_model(str(path))
    assert not names_a_model(str(tmp_path / "images.tar"))
    assert open_model(str(tmp_path)).format == open_model(str(path)).format == "moco-v3"


def test_what_is_left_out_is_told(tmp_path):
    left = {}
    for layout, make in LAYOUTS.items():
        checkpoint = open_model(str(save(make(small_vit()), tmp_path / f"{layout}.pth")))
        left[layout] = checkpoint.key_mapping.dropped
        assert bool(left[layout]) == any("left out" in warning for warning in checkpoint.warnings)
    size = len(small_vit().state_dict())
    assert left["vit"] == ()
    assert set(left["moco-v3"]) == {"base_encoder.head.* (2)", f"momentum_encoder.* ({size})", "predictor.* (1)"}
    assert set(left["dino"]) == {"head.* (2)"}
    assert set(left["mae"]) == {
        "mask_token", "decoder_pos_embed", "decoder_embed.* (1)", "decoder_blocks.* (1)", "decoder_pred.* (1)",
    }  # fmt: skip
    assert any("teacher is taken" in each for each in open_model(str(tmp_path / "dino.pth")).warnings)


@pytest.mark.parametrize(("width", "document", "heads", "assumes"), [
    (192, deit, 3, True),
    (384, deit, 6, True),
    (384, moco_v3, 12, False),  # MoCo v3's ViT-S, by `arch`
    (384, lambda model: moco_v3(model) | {"arch": None}, 12, True),
    (384, lambda model: deit(model) | {"args": argparse.Namespace(model="deit_small_patch16_224")}, 6, False),
    (384, lambda model: deit(model) | {"args": argparse.Namespace(num_heads=4)}, 4, False),
    (384, lambda model: deit(model) | {"arch": "vit_base_patch16_224"}, 6, True),  # of another width
    (192, lambda model: deit(model) | {"arch": ["vit_small"]}, 3, True),  # a list is no name
    (1280, deit, 16, True),  # ViT-H: heads of 80
    (320, deit, 5, True),
    (1152, lambda model: deit(model) | {"arch": "vit_so400m_patch14_siglip_224"}, 16, False),
])  # fmt: skip
def test_heads_are_stated_or_those_of_the_published_model(tmp_path, width, document, heads, assumes):
    model = small_vit(embed_dim=width, depth=1, num_heads=1, mlp_ratio=0.1)
    checkpoint = open_model(str(save(document(model), tmp_path / "a.pth")))
    assert checkpoint.architecture.heads == heads
    assert any("heads" in each for each in checkpoint.assumed) == assumes


def test_heads_in_doubt_are_given_by_a_config_beside(tmp_path):
    theirs = small_vit(embed_dim=40, num_heads=5)
    for layout, make in (
        ("vit", deit),
        ("moco-v3", lambda m: {"state_dict": prefixed("module.base_encoder.", m.state_dict())}),
    ):
        folder = tmp_path / layout
        folder.mkdir()
        path = save(make(theirs), folder / "a.pth")
        with pytest.raises(StorageError, match="how many heads its width of 40 has") as caught:
            open_model(str(path))
        config = json.loads(re.search(r"\{.*\}", caught.value.hint)[0])
        config["model_args"]["num_heads"] = 5
        (folder / "config.json").write_text(json.dumps(config))
        with torch.no_grad():
            ours, checkpoint = open_backbone(str(path))
            assert (ours(noise()) - theirs(noise())).abs().max() <= 1e-6
        assert checkpoint.architecture.heads == 5


def without(name):
    def change(state):
        del state[name]

    return change


def with_(name, *shape):
    return lambda state: state.update({name: torch.ones(shape)})


def without_block(number):
    def change(state):
        for name in [name for name in state if name.startswith(f"blocks.{number}.")]:
            del state[name]

    return change


@pytest.mark.parametrize(("change", "said"), [
    (without_block(0), "lacks block 0 of 2"),
    (with_("blocks.900.norm1.bias", 192), "lacks block 2 of 901"),
    (with_("blocks.1.mlp.fc1.weight"), "fc1.weight of a single number"),
    (with_("head.weight"), "head.weight of a single number"),
    (with_("cls_token", 1, 0, 192), "cls_token of 1 x 0 x 192"),
    (without("blocks.1.attn.proj.bias"), "lacks blocks.1.attn.proj.bias"),
    (without("cls_token"), "17 positions|lacks cls_token|square grid"),
    (without("pos_embed"), "lacks pos_embed"),
    (without("norm.weight"), "lacks norm.weight"),
    (with_("fc_norm.weight", 192), "both norm.weight and fc_norm.weight"),
    (with_("blocks.1.mlp.fc1.weight", 700, 192), "blocks.1.mlp.fc1.weight of 700 x 192, where 768 x 192 is due"),
    (with_("pos_embed", 1, 19, 192), "19 positions"),
    (with_("pos_embed", 17, 192), "pos_embed of 2 axes"),
    (with_("patch_embed.proj.weight", 192, 4, 8, 8), "192 x 4 x 8 x 8"),
    (with_("head_dist.weight", 5, 192), "head_dist.weight, which has no place"),
    (with_("blocks.0.attn.q_norm.weight", 64), "blocks.0.attn.q_norm.weight"),
    (with_("register_tokens", 1, 4, 192), "register_tokens"),
    (with_("blocks.0.mlp.w12.weight", 8, 192), "blocks.0.mlp.w12.weight"),
    (with_("encoder_q.patch_embed.proj.weight", 192, 3, 8, 8), "under no prefix and 'encoder_q.'"),
    (with_("blocks.0.gamma_1", 192), "lacks blocks.0.ls2.gamma|blocks.0.ls1.gamma"),
])  # fmt: skip
def test_what_is_damaged_or_ambiguous_is_named(tmp_path, change, said):
    state = dict(small_vit(num_classes=5).state_dict())
    change(state)
    with pytest.raises(StorageError) as caught:
        open_classifier(str(save({"model": state}, tmp_path / "a.pth")))
    assert re.search(said, caught.value.message), caught.value.message


def test_any_prefix_opens_and_layouts_that_are_not_known_are_named(tmp_path):
    state = small_vit().state_dict()
    assert open_model(str(save(prefixed("visual.", state), tmp_path / "a.pth"))).format == "vit"
    stem = {name.replace("proj.", "proj.0.") if "embed.proj" in name else name: t for name, t in state.items()}
    with pytest.raises(StorageError, match=r"several convolutions \(base_encoder.patch_embed.proj.0.weight\)"):
        open_model(str(save(prefixed("module.base_encoder.", stem), tmp_path / "b.pth")))
    assert open_model(str(save({"student": state}, tmp_path / "c.pth"))).format == "vit"  # the only network


def test_the_shape_alone_can_be_taken(tmp_path):
    path = save(mae(small_vit()), tmp_path / "a.pth")
    ours, checkpoint = open_backbone(f"{path}@random", seed=1)
    assert (checkpoint.format, checkpoint.kind, checkpoint.architecture.heads) == ("none", "backbone", 3)
    assert not torch.equal(ours.pos_embed, small_vit().pos_embed)
    assert (
        timm.create_model(ours.architecture.name, **SHAPE, num_classes=0).state_dict().keys()
        == ours.state_dict().keys()
    )
