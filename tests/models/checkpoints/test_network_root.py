"""State dicts with a BEiT somewhere inside: under a prefix, in OpenMMLab's names, one of several."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.beit import Beit
from torch import nn

from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_backbone, open_classifier, open_masked_image_model
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import PER_BLOCK, SHARED, ReleasedMasked, hf_classifier, noise, randomized

State = dict[str, torch.Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def classifier(seed: int = 0) -> Beit:
    model = randomized(Beit(**PER_BLOCK), seed)
    assert isinstance(model, Beit)
    return model


@torch.no_grad()
def assert_logits(reference: str, theirs: nn.Module) -> None:
    ours, _ = open_classifier(reference)
    images, _ = noise()
    assert (ours(images) - theirs(images)).abs().max() <= 1e-5


MIDAS = {"pretrained.act_postprocess1.3.weight": torch.zeros(4, 48, 1, 1), "scratch.layer1_rn.weight": torch.zeros(4)}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("pretrained.model.", MIDAS),
        ("core.core.pretrained.model.", {"conditioner.weight": torch.zeros(2, 2)}),
        ("model.", {"loss.weight": torch.zeros(3), "metric.confmat": torch.zeros(3, 3)}),
        ("net.module._orig_mod.", {"head.weight": torch.zeros(2, 2)}),
        ("module.", {"n_averaged": torch.tensor(3)}),
        ("backbone.bottom_up.backbone.", {"backbone.fpn_lateral2.weight": torch.zeros(2), "roi.x": torch.zeros(2)}),
        ("visual.trunk.", {"transformer.resblocks.0.ln_1.weight": torch.zeros(2), "visual.blocks.0.x": torch.zeros(2)}),
    ],
)  # fmt: skip
def test_what_stands_before_the_keys_is_taken_off(tmp_path: Path, prefix: str, beside: State) -> None:
    theirs = classifier()
    torch.save({"state_dict": beside | prefixed(prefix, theirs.state_dict())}, tmp_path / "a.pth")
    assert_logits(str(tmp_path / "a.pth"), theirs)
    checkpoint = open_model(str(tmp_path / "a.pth"))
    assert checkpoint.kind == "classifier"
    left_out = next(each for each in checkpoint.warnings if "left out" in each)
    assert all(name.split(".")[0] in left_out for name in beside)


@torch.no_grad()
def test_transformers_names_below_a_module_are_read(tmp_path: Path) -> None:
    theirs = hf_classifier(tmp_path / "hf", layer_norm_eps=1e-12)
    torch.save({"state_dict": prefixed("model.", theirs.state_dict())}, tmp_path / "a.ckpt")
    ours, checkpoint = open_classifier(str(tmp_path / "a.ckpt"))
    images, _ = noise()
    assert (ours(images) - theirs(images).logits).abs().max() <= 1e-5
    assert checkpoint.architecture.norm_eps == 1e-12  # transformers' own


@torch.no_grad()
def test_backbone_of_a_depth_model_of_transformers_gives_its_features(tmp_path: Path) -> None:
    backbone = transformers.BeitConfig(
        image_size=64, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
        use_relative_position_bias=True, out_indices=[1, 2, 3, 4], reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DPTConfig(
        backbone_config=backbone, is_hybrid=False, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, hidden_size=48
    )
    theirs = randomized(transformers.DPTForDepthEstimation(config))
    theirs.save_pretrained(tmp_path)
    ours, checkpoint = open_backbone(str(tmp_path))
    images, _ = noise()
    assert (ours.forward_features(images) - theirs.backbone(images).feature_maps[-1]).abs().max() <= 1e-5
    assert checkpoint.kind == "backbone"
    assert any("neck.*" in each for each in checkpoint.warnings)


def openmmlab(state: State) -> State:
    """Renames the tensors of a timm BEiT or ViT as mmpretrain has them."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^blocks\.", "layers.", name).replace(".norm", ".ln").replace("mlp.fc1", "ffn.layers.0.0")
        name = name.replace("mlp.fc2", "ffn.layers.1").replace("patch_embed.proj.", "patch_embed.projection.")
        name = re.sub(r"^norm\.", "ln1.", re.sub(r"^fc_norm\.", "ln2.", name))
        renamed[re.sub(r"^head\.", "head.fc.", name) if name.startswith("head") else f"backbone.{name}"] = tensor
    return renamed


@pytest.mark.parametrize("outer", ["", "model."])
def test_classifier_of_openmmlab_gives_equal_logits(tmp_path: Path, outer: str) -> None:
    theirs = classifier()
    content = {"meta": {"CLASSES": ["a", "b", "c"]}, "state_dict": prefixed(outer, openmmlab(theirs.state_dict()))}
    torch.save(content, tmp_path / "mm.pth")
    assert_logits(str(tmp_path / "mm.pth"), theirs)
    assert open_model(str(tmp_path / "mm.pth")).classes == ("a", "b", "c")


@torch.no_grad()
def test_pretraining_of_openmmlab_gives_equal_logits(tmp_path: Path) -> None:
    theirs = ReleasedMasked(**SHARED)
    state = openmmlab(theirs.state_dict())
    for part in ("weight", "bias"):
        state[f"head.cls_head.{part}"] = state.pop(f"backbone.lm_head.{part}")
    torch.save({"state_dict": state}, tmp_path / "mm.pth")
    ours, _ = open_masked_image_model(str(tmp_path / "mm.pth"))
    images, mask = noise()
    assert (ours(images, mask) - theirs(images, mask)).abs().max() <= 1e-5


def test_segmenter_of_openmmlab_keeps_its_head_and_normalization(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in classifier().state_dict().items() if not name.startswith(("head", "fc"))}
    head = {"decode_head.conv_seg.weight": torch.zeros(4, 8, 1, 1), "decode_head.conv_seg.bias": torch.zeros(4)}
    torch.save({"state_dict": openmmlab(state) | head}, tmp_path / "mm.pth")
    checkpoint = open_model(str(tmp_path / "mm.pth"))
    assert (checkpoint.kind, checkpoint.outputs) == ("segmenter", 4)
    assert checkpoint.normalization[0][0] == 0.485


@pytest.mark.parametrize("of_torch", [False, True], ids=["mmpretrain", "mmseg"])
def test_plain_vit_of_openmmlab_gives_equal_logits(tmp_path: Path, of_torch: bool) -> None:
    shape = {"img_size": 64, "patch_size": 16, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 3}
    theirs = randomized(timm.create_model("vit_tiny_patch16_224", **shape))
    state = openmmlab(theirs.state_dict())
    if of_torch:  # torch.nn.MultiheadAttention
        state = {re.sub(r"attn\.qkv\.", "attn.attn.in_proj_", n).replace("attn.proj", "attn.attn.out_proj"): t
                 for n, t in state.items()}  # fmt: skip
    torch.save({"state_dict": state}, tmp_path / "mm.pth")
    assert_logits(str(tmp_path / "mm.pth"), theirs)


# --- several networks in one file


def test_two_networks_are_named_and_one_is_picked(tmp_path: Path) -> None:
    encoder, regressor = classifier(1), classifier(2)
    both = prefixed("encoder.", encoder.state_dict()) | prefixed("regressor.net.", regressor.state_dict())
    path = tmp_path / "two.safetensors"
    save_file(both, path)
    with pytest.raises(StorageError, match=r"2 vision Transformers, under 'encoder\.' and 'regr") as caught:
        open_model(str(path))
    assert f"'{path}#encoder' or '{path}#regressor.net'" in caught.value.hint
    assert_logits(f"{path}#encoder", encoder)
    assert_logits(f"{path}#regressor", regressor)
    with pytest.raises(StorageError, match="no network 'decoder'") as caught:
        open_model(f"{path}#decoder")
    assert "'#encoder', '#regressor.net'" in caught.value.hint


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("model", "model_ema"), ("net", "ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema"),
     ("model.state_dict", "ema.state_dict"), ("generator", "shadow_params"), ("model", "emaModel")],
)  # fmt: skip
def test_raw_weights_are_taken_and_averaged_ones_are_a_word_away(tmp_path: Path, raw: str, averaged: str) -> None:
    models = {raw: classifier(1), averaged: classifier(2)}
    content: dict[str, object] = {"epoch": 3}
    for key, model in models.items():
        outer, _, inner = key.partition(".")
        content[outer] = {inner: model.state_dict()} if inner else model.state_dict()
    path = tmp_path / "a.pth"
    torch.save(content, path)
    assert_logits(str(path), models[raw])
    assert any(f"'{path}#{averaged}'" in each for each in open_model(str(path)).warnings)
    assert_logits(f"{path}#{averaged}", models[averaged])
    word = "shadow" if "shadow" in averaged else "ema"
    assert_logits(f"{path}#{word}", models[averaged])
    assert not any("averaged" in each for each in open_model(f"{path}#{word}").warnings)


@pytest.mark.parametrize(("raw", "averaged"), [("model.", "ema_model.module."), ("net.", "net_ema."), ("", "ema.")])
def test_averaged_weights_in_the_same_state_dict_are_a_word_away(tmp_path: Path, raw: str, averaged: str) -> None:
    models = {raw: classifier(1), averaged: classifier(2)}
    path = tmp_path / "a.ckpt"
    state = prefixed(raw, models[raw].state_dict()) | prefixed(averaged, models[averaged].state_dict())
    torch.save({"state_dict": state}, path)
    assert_logits(str(path), models[raw])
    assert any(f"'{path}#{averaged.rstrip('.')}'" in each for each in open_model(str(path)).warnings)
    assert_logits(f"{path}#ema", models[averaged])


def test_student_is_picked_by_name(tmp_path: Path) -> None:
    student, teacher = classifier(1), classifier(2)
    path = tmp_path / "a.pth"
    torch.save({"student": prefixed("module.backbone.", student.state_dict()), "teacher": teacher.state_dict()}, path)
    assert_logits(str(path), teacher)
    assert_logits(f"{path}#student", student)


def test_a_file_whose_name_has_a_number_sign_is_that_file(tmp_path: Path) -> None:
    torch.save(classifier().state_dict(), tmp_path / "run#3.pth")
    assert open_model(str(tmp_path / "run#3.pth")).kind == "classifier"


def test_weights_of_an_adapter_name_the_way_to_merge_them(tmp_path: Path) -> None:
    theirs = hf_classifier(tmp_path / "hf")
    state = prefixed("base_model.model.", theirs.state_dict())
    state["base_model.model.beit.layers.0.attention.q_proj.lora_A.default.weight"] = torch.zeros(4, 48)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(StorageError, match="peft adapter") as caught:
        open_model(str(tmp_path / "a.pth"))
    assert "merge_and_unload" in caught.value.hint


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_wrappers_around_single_blocks_count_nowhere(tmp_path: Path, wrapper: str, prefix: str) -> None:
    theirs = classifier()
    state = {re.sub(r"^(blocks\.[02])\.", rf"\1.{wrapper}.", name): each for name, each in theirs.state_dict().items()}
    torch.save(prefixed(prefix, state), tmp_path / "a.pth")
    assert_logits(str(tmp_path / "a.pth"), theirs)
