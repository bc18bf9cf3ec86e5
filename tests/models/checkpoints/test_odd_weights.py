"""Checkpoints that are nearly right: other names, numbers, shapes, places; each opens alike or says what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit

from beitcli.config.architecture import Architecture
from beitcli.engine.classification.evaluate import class_names
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_classifier, open_masked_image_model
from beitcli.models.checkpoints.open import open_model
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.tokenizers.open import open_tokenizer_of
from tests.helpers.foreign_models import (
    PER_BLOCK,
    SHARED,
    ReleasedMasked,
    hf_classifier,
    hf_masked,
    noise,
    randomized,
    save_plain,
    timm_small,
)


@pytest.mark.parametrize(
    "settings", [{"use_shared_relative_position_bias": True}, {"use_relative_position_bias": True}]
)
@torch.no_grad()
def test_names_that_transformers_has_in_memory_are_read_too(tmp_path, settings):
    theirs = hf_masked(tmp_path / "hf", **settings)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    model, checkpoint = open_masked_image_model(str(tmp_path))
    images, mask = noise()
    assert checkpoint.format == "hf"
    assert (model(images, mask) - theirs(images, bool_masked_pos=mask).logits[mask]).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_open_in_32(tmp_path, dtype):
    model = randomized(Beit(**PER_BLOCK))
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, path)
    ours, _ = open_classifier(str(path))
    assert ours.head.weight.dtype == torch.float32
    assert torch.equal(ours.head.weight, model.head.weight.to(dtype).float())


def test_quantised_weights_are_refused(tmp_path):
    model = randomized(Beit(**PER_BLOCK))
    tensors = {name: t.mul(100).to(torch.int8) if t.ndim == 2 else t for name, t in model.state_dict().items()}
    save_file(tensors, tmp_path / "q.safetensors")
    with pytest.raises(StorageError, match="int8: it is quantised"):
        open_classifier(str(tmp_path / "q.safetensors"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_wrappers_lengthen_are_shortened(tmp_path, prefix):
    path = save_plain(randomized(Beit(**PER_BLOCK)), tmp_path / "a.safetensors", lambda name: prefix + name)
    assert open_model(str(path)).kind == "classifier"


def test_averaged_weights_beside_the_raw_ones_are_spoken_of(tmp_path):
    state = randomized(Beit(**PER_BLOCK)).state_dict()
    torch.save({"model": state, "model_ema": state}, tmp_path / "a.pth")
    assert any("model_ema" in warning for warning in open_model(str(tmp_path / "a.pth")).warnings)


def changed(tmp_path, name, shape):
    path = save_plain(ReleasedMasked(**SHARED), tmp_path / "a.safetensors")
    tensors = load_file(path)
    tensors[name] = torch.zeros(shape)
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (48, 3, 2, 16, 16)),
        ("patch_embed.proj.weight", (48, 3, 0, 0)),
        ("rel_pos_bias.relative_position_bias_table", (52,)),
        ("blocks.2.mlp.fc1.weight", (190, 48)),
        ("blocks.1.attn.qkv.weight", (48, 48)),
        ("mask_token", (1, 1, 40)),
        ("mask_token", (48,)),
        ("cls_token", (1, 2, 48)),
        ("norm.weight", (1, 48)),
        ("lm_head.bias", (63,)),
    ],
)
def test_a_tensor_of_another_shape_is_named(tmp_path, name, shape):
    path = changed(tmp_path, name, shape)
    with pytest.raises(StorageError) as caught:
        open_masked_image_model(path)
    assert name.replace("lm_head", "token_head").split(".")[0] in caught.value.message


@pytest.mark.parametrize("heads", [0, -4, "4", True, 4.5])
def test_heads_that_are_no_number_of_heads_are_refused(tmp_path, heads):
    hf_masked(tmp_path, use_absolute_position_embeddings=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_attention_heads": heads}))
    with pytest.raises(StorageError, match="heads"):
        open_model(str(tmp_path))


def test_a_header_without_end_is_a_storage_error(tmp_path):
    nested = ('{"a":' + "[" * 100_000).encode()
    (tmp_path / "a.safetensors").write_bytes(len(nested).to_bytes(8, "little") + nested)
    with pytest.raises(StorageError):
        open_model(str(tmp_path / "a.safetensors"))


def test_few_bytes_do_not_become_many_numbers(tmp_path):
    vast = torch.zeros(1).expand(3 * 48, 10_000_000)
    torch.save({"model": {**ReleasedMasked(**SHARED).state_dict(), "lm_head.weight": vast}}, tmp_path / "a.pth")
    with pytest.raises(StorageError, match=r"more numbers|due|lengths"):
        open_model(str(tmp_path / "a.pth")).tensors()


def test_version_2_is_not_given_the_first_versions_tokenizer_or_normalization(tmp_path):
    model = ReleasedMasked(8192, **SHARED)
    state = {**model.state_dict(), "cls_pt_layers.0.norm1.weight": torch.ones(48)}
    torch.save({"model": state}, tmp_path / "beitv2.pth")
    checkpoint = open_model(str(tmp_path / "beitv2.pth"))
    assert checkpoint.normalization[0][0] == 0.485
    assert checkpoint.aggregation is not None
    with pytest.raises(StorageError, match="names no tokenizer"):
        open_tokenizer_of(checkpoint)


def test_a_stated_normalization_can_be_replaced(tmp_path):
    timm_small(tmp_path / "timm")
    checkpoint = open_model(str(tmp_path / "timm"))
    assert checkpoint.normalized("imagenet").normalization[0] == (0.485, 0.456, 0.406)
    assert checkpoint.normalized(None) is checkpoint


def test_classes_that_are_named_by_numbers_keep_their_names(tmp_path):
    names = {number: str(number) for number in range(1000)}
    hf_classifier(tmp_path / "numbered", id2label=names)
    assert class_names(open_model(str(tmp_path / "numbered")))[3] == "3"
    timm_small(tmp_path / "nameless", num_classes=1000)
    assert not class_names(open_model(str(tmp_path / "nameless")))[3].isdecimal()


@pytest.mark.parametrize("place", ["step-0000500", "checkpoints/step-7", "theirs"])
def test_others_folders_are_not_taken_for_ours_by_their_names(tmp_path, place):
    hf_classifier(tmp_path / place)
    (tmp_path / place / "notes").write_text("x")
    if place == "theirs":
        (tmp_path / place / "SHA256SUMS").write_text("abc  model.safetensors\n")
    assert open_model(str(tmp_path / place)).format == "hf"


def test_a_named_file_is_that_file(tmp_path, finetuned_run):
    stray = tmp_path / "stray"
    hf_classifier(stray)
    (stray / "checkpoints").symlink_to(finetuned_run / "checkpoints")
    assert open_model(str(stray / "model.safetensors")).format == "hf"
    assert open_model(str(stray)).format == "hf"
    assert open_model(str(stray / "checkpoints")).format == "beit"


def test_the_only_weights_of_a_folder_have_its_settings(tmp_path):
    hf_masked(tmp_path, use_absolute_position_embeddings=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "beit.safetensors")
    by_file, by_folder = open_model(str(tmp_path / "beit.safetensors")), open_model(str(tmp_path))
    assert by_file.architecture == by_folder.architecture
    assert by_file.architecture.heads == 4


@pytest.mark.parametrize("hidden", [191, 193, 250])
def test_any_width_of_the_ffn_opens(tmp_path, hidden):
    model = randomized(Beit(**PER_BLOCK | {"mlp_ratio": (hidden + 0.5) / 48}))
    assert model.blocks[0].mlp.fc1.weight.shape == (hidden, 48)
    ours, _ = open_classifier(str(save_plain(model, tmp_path / "a.safetensors")))
    assert ours.blocks[0].mlp.fc1.weight.shape == (hidden, 48)


def test_the_first_weights_are_cut_at_one_std_and_spread_as_the_normal_there():
    model = MaskedImageModel(Architecture(image_size=(32, 32), width=256, depth=1, heads=4), 512)
    weights = model.token_head.weight.detach()
    assert weights.abs().max() <= 0.02
    assert float(weights.std()) == pytest.approx(0.0108, abs=2e-4)
    assert float((weights.abs() < 0.01).float().mean()) == pytest.approx(0.3829 / 0.6827, abs=0.01)


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "holds quantised tensors"),
        (lambda tensor: tensor.to_sparse(), "holds sparse tensors"),
        (lambda tensor: tensor.to(torch.complex64), "as complex64, no weights of a BEiT"),
        (lambda tensor: tensor.to("meta"), "no numbers for head.weight"),
        (lambda tensor: tensor.to(torch.int8), "as int8: it is quantised"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_named(tmp_path, change, said):
    state = Beit(**PER_BLOCK).state_dict()
    torch.save(state | {"head.weight": change(state["head.weight"])}, tmp_path / "a.pth")
    with pytest.raises(StorageError, match=said) as refused:
        open_classifier(str(tmp_path / "a.pth"))
    assert "Download" not in refused.value.hint
