"""MODEL references: what a run, its checkpoints and one checkpoint folder open, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beitcli.data.transforms.base import IMAGENET_MEAN, IMAGENET_STD
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_backbone, open_classifier, open_masked_image_model
from beitcli.models.checkpoints.open import open_checkpoint, open_model, open_unverified
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier
from beitcli.runtime.storage.checkpoint import load_tensors


def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-0000004"


def test_run_checkpoints_and_one_checkpoint_open_the_same(pretrained_run):
    names = (pretrained_run, pretrained_run / "checkpoints", newest(pretrained_run))
    for reference in (*names, newest(pretrained_run) / "model.safetensors"):
        checkpoint = open_checkpoint(str(reference))
        assert checkpoint.folder.path == newest(pretrained_run)
        assert checkpoint.kind == "masked-image-model"
        assert checkpoint.warnings == ()
    older = open_checkpoint(str(pretrained_run / "checkpoints" / "step-0000002"))
    assert older.folder.trainer["step"] == 2


def test_opened_model_holds_the_checkpoints_weights_and_settings(pretrained_run):
    model, checkpoint = open_masked_image_model(str(pretrained_run))
    assert isinstance(model, MaskedImageModel)
    assert not model.training
    stored = load_tensors(newest(pretrained_run) / "model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    assert checkpoint.architecture.image_size == (32, 32)
    assert checkpoint.architecture.grid == (4, 4)
    assert checkpoint.normalization == (IMAGENET_MEAN, IMAGENET_STD)


def test_classifier_opens_at_its_own_and_at_another_size(finetuned_run):
    model, checkpoint = open_classifier(str(finetuned_run))
    assert isinstance(model, Classifier)
    assert checkpoint.settings["classes"] == ["blue", "green", "red"]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
        larger, _ = open_classifier(str(finetuned_run), (64, 64))
        assert larger.architecture.grid == (8, 8)
        assert torch.equal(larger.head.weight, model.head.weight)
        assert larger(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_backbone_opens_from_pretraining_and_from_finetuning(pretrained_run, finetuned_run):
    for run in (pretrained_run, finetuned_run):
        model, _ = open_backbone(str(run))
        stored = load_tensors(newest(run) / "model.safetensors")
        assert torch.equal(model.blocks[3].mlp.fc2.weight, stored["blocks.3.mlp.fc2.weight"])


def test_wrong_kinds_are_refused_with_the_command_that_makes_the_right_one(
    tokenizer_run, pretrained_run, finetuned_run
):
    for open_as, run, maker in (
        (open_classifier, pretrained_run, "beit finetune"),
        (open_masked_image_model, finetuned_run, "beit pretrain"),
        (open_backbone, tokenizer_run, "beit pretrain"),
    ):
        with pytest.raises(StorageError) as caught:
            open_as(str(run))
        assert maker in caught.value.hint
        assert str(run) in caught.value.message


def test_a_missing_model_is_a_storage_error_that_suggests_the_nearest(pretrained_run):
    wrong = pretrained_run.parent / "pretraimed"
    with pytest.raises(StorageError) as caught:
        open_checkpoint(str(wrong))
    assert str(wrong) in caught.value.message
    assert str(pretrained_run) in caught.value.hint


def test_a_folder_without_checkpoints_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path))
    stray = tmp_path / "notes.txt"
    stray.write_text("nothing")
    with pytest.raises(StorageError, match="was not written by this program"):
        open_checkpoint(str(stray))


def test_a_damaged_newest_checkpoint_gives_the_one_before_and_says_so(tmp_path, pretrained_run):
    run = tmp_path / "run"
    shutil.copytree(pretrained_run, run)
    weights = newest(run) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    _, checkpoint = open_masked_image_model(str(run))
    assert checkpoint.folder.path.name == "step-0000002"
    assert len(checkpoint.warnings) == 1
    assert "step-0000004" in checkpoint.warnings[0]
    with pytest.raises(StorageError, match="SHA-256"):
        open_checkpoint(str(newest(run)))


def test_unverified_reads_what_verified_reads_and_the_damaged_newest_too(tmp_path, pretrained_run, finetuned_run):
    for run in (pretrained_run, finetuned_run):
        verified, unverified = open_model(str(run)), open_unverified(str(run))
        assert verified.folder is not None
        assert replace(unverified, folder=verified.folder, warnings=verified.warnings) == verified
    run = Path(shutil.copytree(finetuned_run, tmp_path / "run"))
    weights = newest(run) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert (open_model(str(run)).weights.parent.name, open_unverified(str(run)).weights) == ("step-0000002", weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda section: None, "has None for beit"),
        (lambda section: [section], "for beit"),
        (lambda section: section | {"resize_positions": "nearest"}, "has 'nearest' for resize_positions"),
        (lambda section: section | {"token_filter": "box"}, "has 'box' for token_filter"),
        (lambda section: section | {"head": ["linear"]}, "cannot be read"),
    ],
)
def test_a_section_that_was_edited_by_hand_is_refused(tmp_path, finetuned_run, change, said):
    folder = Path(shutil.copytree(newest(finetuned_run), tmp_path / "edited"))
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"beit": change(document["beit"])}))
    with pytest.raises(StorageError, match=said):
        open_unverified(str(folder))


def test_a_tokenizer_has_no_architecture_nor_a_shape_without_weights(tokenizer_run):
    checkpoint = open_model(str(tokenizer_run))
    assert (checkpoint.kind, checkpoint.format, checkpoint.settings["size"]) == ("tokenizer", "beit", 16)
    with pytest.raises(StorageError, match="is a tokenizer"):
        _ = checkpoint.architecture
    with pytest.raises(StorageError, match="is a tokenizer"):
        open_model(f"{tokenizer_run}@random")


def test_a_shape_without_weights_has_no_head_and_is_drawn_from_the_seed(finetuned_run):
    trained, shape = open_model(str(finetuned_run)), open_model(f"{finetuned_run}@random", seed=3)
    assert (shape.kind, shape.format, shape.outputs, shape.classes, shape.seed) == ("backbone", "none", 0, (), 3)
    assert shape.architecture == trained.architecture
    again, other = (open_model(f"{finetuned_run}@random", seed=seed).tensors() for seed in (3, 4))
    assert all(torch.equal(tensor, again[name]) for name, tensor in shape.tensors().items())
    assert not torch.equal(again["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert "head.weight" not in again
