"""Others' checkpoints compute here what they compute there: random weights, fp32, CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from timm.models.beit import Beit

from beitcli.models.checkpoints.build import open_backbone, open_classifier, open_masked_image_model
from beitcli.models.checkpoints.open import open_model
from beitcli.models.networks.attention_maps import attention_rows
from tests.helpers.foreign_models import (
    SMALL,
    ReleasedMasked,
    hf_backbone,
    hf_classifier,
    hf_masked,
    noise,
    randomized,
    save_plain,
    save_released,
    timm_small,
)

ABSOLUTE = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}
SHARED = {"use_shared_relative_position_bias": True}


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("settings", [ABSOLUTE, SHARED], ids=["absolute", "shared"])
@torch.no_grad()
def test_transformers_masked_model_gives_equal_logits_and_loss(tmp_path: Path, settings: dict[str, object]) -> None:
    theirs = hf_masked(tmp_path / "hf", **settings)
    images, mask = noise()
    labels = torch.arange(int(mask.sum())) % 64
    expected = theirs(images, bool_masked_pos=mask, labels=labels)
    model, checkpoint = open_masked_image_model(str(tmp_path / "hf"))
    logits = model(images, mask)
    assert_same(logits, expected.logits[mask])
    assert abs(float(F.cross_entropy(logits, labels)) - float(expected.loss)) <= 1e-6
    assert checkpoint.format == "hf"
    assert checkpoint.outputs == 64


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "class token"])
@pytest.mark.parametrize("eps", [1e-6, 1e-12])
@torch.no_grad()
def test_transformers_classifier_gives_equal_logits(tmp_path: Path, mean: bool, eps: float) -> None:
    theirs = hf_classifier(tmp_path / "hf", use_mean_pooling=mean, layer_norm_eps=eps)
    images, _ = noise()
    model, checkpoint = open_classifier(str(tmp_path / "hf"))
    assert_same(model(images), theirs(images).logits)
    assert checkpoint.classes == ("blue", "green", "red")
    assert checkpoint.architecture.norm_eps == eps


@torch.no_grad()
def test_transformers_attentions_are_equal_in_every_layer(tmp_path: Path) -> None:
    theirs = hf_backbone(tmp_path / "hf")
    images, _ = noise()
    attentions = theirs(images, output_attentions=True).attentions
    model, checkpoint = open_backbone(str(tmp_path / "hf"))
    assert checkpoint.kind == "backbone"
    for layer, expected in enumerate(attentions):
        assert (attention_rows(model, images, layer) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [{}, {"global_pool": "token"}, {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "init_values": 0}],
    ids=["per-block", "class token", "absolute"],
)
@torch.no_grad()
def test_timm_folder_gives_equal_logits(tmp_path: Path, settings: dict[str, object]) -> None:
    theirs = timm_small(tmp_path / "timm", **settings)
    images, _ = noise()
    model, checkpoint = open_classifier(str(tmp_path / "timm"))
    assert_same(model(images), theirs(images))
    assert checkpoint.format == "timm"
    assert checkpoint.architecture.heads == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beit_large_patch16_224"])
@torch.no_grad()
def test_timm_model_of_full_size_gives_equal_logits(tmp_path: Path, name: str) -> None:
    theirs = timm.create_model(name).eval()
    for table in (p for n, p in theirs.named_parameters() if n.endswith("bias_table")):
        table.normal_(0, 0.2)
    theirs.head.weight.normal_(0, 0.02)
    timm.models.save_for_hf(theirs, tmp_path / name)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = theirs(images)
    del theirs
    model, checkpoint = open_classifier(str(tmp_path / name))
    shutil.rmtree(tmp_path / name)
    assert_same(model(images), expected)
    assert checkpoint.parameters == {"base": 86_530_984, "large": 304_430_568}[name.split("_")[1]]


@pytest.mark.parametrize("size", [384, 512])
@torch.no_grad()
def test_timm_model_of_larger_images_gives_equal_logits(tmp_path: Path, size: int) -> None:
    theirs = timm_small(tmp_path / "timm", img_size=size, depth=2)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    model, checkpoint = open_classifier(str(tmp_path / "timm"))
    assert checkpoint.architecture.image_size == (size, size)
    assert_same(model(images), theirs(images))


RELEASED = {
    "absolute": {"use_abs_pos_emb": True},
    "shared": {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("positions", RELEASED)
@torch.no_grad()
def test_released_pretraining_gives_equal_logits(tmp_path: Path, positions: str, legacy: bool) -> None:
    theirs = ReleasedMasked(**RELEASED[positions])
    path = save_released(theirs, tmp_path / "pretrained.pth", legacy=legacy, num_heads=4)
    images, mask = noise()
    model, checkpoint = open_masked_image_model(str(path))
    assert_same(model(images, mask), theirs(images, mask))
    assert (checkpoint.format, checkpoint.kind) == ("official", "masked-image-model")
    assert checkpoint.architecture.positions == positions


@pytest.mark.parametrize("wrapped", ["model", "module"])
@torch.no_grad()
def test_released_finetuning_gives_equal_logits(tmp_path: Path, wrapped: str) -> None:
    theirs = randomized(
        Beit(img_size=64, embed_dim=48, depth=3, num_heads=4, num_classes=5, use_abs_pos_emb=False,
             use_rel_pos_bias=True, init_values=0.1)
    )  # fmt: skip
    path = save_released(theirs, tmp_path / "finetuned.pth", wrapped=wrapped)
    images, _ = noise()
    model, checkpoint = open_classifier(str(path))
    assert_same(model(images), theirs(images))
    assert checkpoint.format == "official"
    assert checkpoint.architecture.heads == 4  # from the bias table
    assert checkpoint.classes == ("0", "1", "2", "3", "4")


@torch.no_grad()
def test_shared_bias_of_a_pretraining_becomes_one_a_block(tmp_path: Path) -> None:
    theirs = ReleasedMasked(**RELEASED["shared"])
    path = save_released(theirs, tmp_path / "pretrained.pth")
    backbone, _ = open_backbone(str(path))
    table = theirs.rel_pos_bias.relative_position_bias_table
    assert all(torch.equal(block.attn.relative_position_bias_table, table) for block in backbone.blocks)
    images, _ = noise()
    expected = theirs.forward_features(images)
    assert (theirs.norm(backbone.forward_features(images)) - expected).abs().max() <= 1e-5


def test_normalization_is_read_from_the_release_args(tmp_path: Path) -> None:
    model = ReleasedMasked(**RELEASED["absolute"])
    for default, mean in ((True, 0.485), (False, 0.5)):
        path = save_released(model, tmp_path / "p.pth", num_heads=4, imagenet_default_mean_and_std=default)
        assert open_model(str(path)).normalization[0][0] == mean
    checkpoint = open_model(str(save_released(model, tmp_path / "p.pth", model="beit_base_patch16_224_8k_vocab")))
    assert checkpoint.architecture.heads == 12  # of the name that the training noted, where no table tells
    assert "ImageNet mean and std" in checkpoint.warnings[0]


def test_normalization_that_nothing_states_is_that_of_the_published_models(tmp_path: Path) -> None:
    """The paper's own: ImageNet; the release's relative positions and DiT (absolute, LayerScale): 0.5 / 0.5."""
    layouts = {
        "paper.pth": ({"use_abs_pos_emb": True}, 0.485),
        "dit.pth": ({"use_abs_pos_emb": True, "init_values": 0.1}, 0.5),
        "release.pth": ({"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}, 0.5),
    }
    for name, (settings, mean) in layouts.items():
        path = save_released(ReleasedMasked(**settings), tmp_path / name, num_heads=4)
        assert open_model(str(path)).normalization[0][0] == mean, name
    for name, settings in {"absolute": ABSOLUTE, "shared": SHARED}.items():
        hf_masked(tmp_path / name, **settings)
        assert open_model(str(tmp_path / name)).normalization[0][0] == 0.5  # BeitImageProcessor's default


@pytest.mark.parametrize(
    ("name", "mean"),
    [("beit_base_patch16_224", 0.5), ("beitv2_base_patch16_224", 0.485), ("vit_tiny_patch16_224", 0.5),
     ("deit_tiny_patch16_224", 0.485)],
)  # fmt: skip
def test_timm_folder_that_states_no_mean_has_that_of_timm_s_own_weights(tmp_path: Path, name: str, mean: float) -> None:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = randomized(timm.create_model(name, num_classes=3, **arguments))
    timm.models.save_for_hf(model, tmp_path / "timm", model_args=arguments)
    document = json.loads((tmp_path / "timm/config.json").read_text())
    for key in ("mean", "std"):
        del document["pretrained_cfg"][key]
    (tmp_path / "timm/config.json").write_text(json.dumps(document))
    checkpoint = open_model(str(tmp_path / "timm"))
    assert checkpoint.normalization[0][0] == mean
    assert any("images normalised by" in warning for warning in checkpoint.warnings)


@torch.no_grad()
def test_transformers_data2vec_classifier_gives_equal_logits(tmp_path: Path) -> None:
    config = transformers.Data2VecVisionConfig(**SMALL, use_shared_relative_position_bias=True, num_labels=3)
    theirs = randomized(transformers.Data2VecVisionForImageClassification(config))
    theirs.save_pretrained(tmp_path / "hf")
    ours, _ = open_classifier(str(tmp_path / "hf"))
    images, _ = noise()
    assert_same(ours(images), theirs(images).logits)


@torch.no_grad()
def test_bare_weights_with_the_names_of_transformers_have_its_epsilon(tmp_path: Path) -> None:
    theirs = hf_classifier(tmp_path / "hf", layer_norm_eps=1e-12)
    save_plain(theirs, tmp_path / "bare.safetensors")
    model, checkpoint = open_classifier(str(tmp_path / "bare.safetensors"))
    assert checkpoint.architecture.norm_eps == 1e-12
    assert any("epsilon of 1e-12" in each for each in checkpoint.warnings)
    images = noise()[0] * 1e-6
    assert (model(images) - theirs(images).logits).abs().max() <= 1e-5


def test_heads_that_nothing_tells_are_assumed_and_said(tmp_path: Path) -> None:
    model = ReleasedMasked(use_abs_pos_emb=True, embed_dim=128)
    checkpoint = open_model(str(save_released(model, tmp_path / "p.pth")))
    assert checkpoint.architecture.heads == 2
    assert any("2 heads of 64" in warning for warning in checkpoint.warnings)
