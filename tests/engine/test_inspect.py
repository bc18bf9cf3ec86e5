"""`beit inspect`: every layout named from its header, with torch left out where the file is safetensors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from timm.models.beit import Beit

from beitcli.tokenizers.open import open_tokenizer
from tests.helpers.foreign_models import (
    PER_BLOCK,
    SHARED,
    ReleasedMasked,
    hf_backbone,
    hf_classifier,
    hf_masked,
    randomized,
    save_plain,
    save_released,
    timm_small,
)
from tests.helpers.released_dalle import Decoder, Encoder, save_module


def inspected(beit, reference: object) -> dict[str, object]:
    ended = beit("inspect", reference, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


MAKERS = {
    "hf masked": (
        lambda path: hf_masked(path, use_shared_relative_position_bias=True),
        {"format": "hf", "kind": "masked-image-model", "vocab_size": 64, "classes": None, "parameters": 125_408},
    ),
    "hf classifier": (hf_classifier, {"format": "hf", "kind": "classifier", "vocab_size": None, "classes": 3}),
    "hf backbone": (hf_backbone, {"format": "hf", "kind": "backbone", "vocab_size": None, "classes": None}),
    "timm": (timm_small, {"format": "timm", "kind": "classifier", "classes": 3}),
    "released pretraining": (
        lambda path: save_released(ReleasedMasked(**SHARED), path),
        {"format": "official", "kind": "masked-image-model", "vocab_size": 64, "parameters": 125_408},
    ),
    "released finetuning": (
        lambda path: save_released(randomized(Beit(**PER_BLOCK)), path, legacy=True),
        {"format": "official", "kind": "classifier", "classes": 3},
    ),
    "bare timm weights": (
        lambda path: save_plain(randomized(Beit(**PER_BLOCK)), path),
        {"format": "timm", "kind": "classifier", "classes": 3},
    ),
    "segmenter": (
        lambda path: save_plain(
            randomized(Beit(**PER_BLOCK)),
            path,
            lambda name: name.replace("head.", "decode_head.") if name.startswith("head") else f"backbone.{name}",
        ),
        {"format": "timm", "kind": "segmenter", "vocab_size": None, "classes": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_is_named(beit, tmp_path, name):
    make, expected = MAKERS[name]
    make(tmp_path / "theirs")
    found = inspected(beit, tmp_path / "theirs")
    assert {key: found[key] for key in expected} == expected
    assert (found["image_size"], found["grid"]) == ([64, 64], [4, 4])
    assert found["architecture"]["width"] == 48
    assert found["architecture"]["depth"] == 3
    assert found["architecture"]["patch_size"] == 16


def test_own_runs_are_named(beit, pretrained_run, finetuned_run, tokenizer_run):
    pretrained, finetuned = inspected(beit, pretrained_run), inspected(beit, finetuned_run)
    assert (pretrained["format"], pretrained["kind"], pretrained["vocab_size"]) == ("beit", "masked-image-model", 16)
    assert (finetuned["kind"], finetuned["classes"]) == ("classifier", 3)
    assert finetuned["class_names"] == ["blue", "green", "red"]
    tokenizer = inspected(beit, tokenizer_run)
    assert (tokenizer["kind"], tokenizer["vocab_size"], tokenizer["grid"]) == ("tokenizer", 16, [4, 4])
    assert finetuned["image_size"] == [32, 32]


def test_the_name_of_the_file_does_not_matter(beit, tmp_path):
    path = save_released(ReleasedMasked(**SHARED), tmp_path / "timm_beit_large_patch16_512_classifier.safetensors")
    found = inspected(beit, path)
    assert (found["format"], found["kind"], found["container"]) == ("official", "masked-image-model", "torch")


def test_a_safetensors_file_is_inspected_without_torch(tmp_path, finetuned_run):
    hf_classifier(tmp_path / "hf")
    script = (
        "import sys; from beitcli.cli.app import main; codes = [main(['inspect', each]) for each in sys.argv[1:]]; "
        "sys.exit(f'loaded torch: {codes}' if 'torch' in sys.modules else max(codes))"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "hf"), str(finetuned_run)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["format"] for line in done.stdout.splitlines()] == ["hf", "beit"]


def test_tensors_are_listed_where_asked_for(beit, finetuned_run):
    ended = beit("inspect", finetuned_run, "--json", "--tensors")
    assert json.loads(ended.out)["tensors"]["head.weight"] == [3, 128]


def test_a_plain_vit_is_told_and_a_near_one_refused_by_name_of_what_it_has(beit, tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    found = inspected(beit, save_plain(model, tmp_path / "vit.safetensors"))
    assert (found["format"], found["kind"], found["classes"], found["grid"]) == ("vit", "classifier", 3, [2, 2])
    assert (found["architecture"]["name"], found["architecture"]["heads"]) == ("vit_tiny_patch16_224", 3)
    assert any("3 heads" in each for each in found["assumed"])
    near = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, qk_norm=True)
    ended = beit("inspect", save_plain(near, tmp_path / "near.safetensors"))
    assert ended.code == 4
    assert "blocks.0.attn.k_norm.bias" in ended.err


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("beit_base_patch16_224", "timm/beit_base_patch16_224"),
        ("microsoft/beit-base-patch16-224", "hf://microsoft/beit-base-patch16-224"),
        ("timm/beit_bse_patch16_224", "timm/beit_base_patch16_224"),
    ],
)
def test_a_name_that_is_nearly_right_gets_a_suggestion(beit, tmp_path, monkeypatch, reference, hint):
    monkeypatch.chdir(tmp_path)
    ended = beit("inspect", reference)
    assert ended.code == 4
    assert hint in ended.err


def test_a_tokenizer_is_named_by_its_kind_and_only_what_is_trained_counts(beit, tmp_path):
    words = ("--kind", "vq", "--limit", 32, "--vocab-size", 16, "--size", 16, "--width", 8, "--batch-size", 8)
    made = beit("train-tokenizer", "sample", *words, "--steps", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert made.code == 0, made.err
    found = inspected(beit, tmp_path / "run")
    assert found["architecture"]["name"] == "vector-quantized autoencoder (vq)"
    model = open_tokenizer(str(tmp_path / "run"), torch.device("cpu")).model
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["parameters"] < sum(tensor.numel() for tensor in model.state_dict().values())


def test_dall_e_is_named_from_its_pickles_from_the_cache_and_from_the_hub_layout(beit, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "dalle").mkdir()
    save_module(Encoder(), tmp_path / "dalle" / "encoder.pkl")
    save_module(Decoder(), tmp_path / "dalle" / "decoder.pkl")
    found = inspected(beit, tmp_path / "dalle")
    assert (found["format"], found["kind"], found["vocab_size"]) == ("dall-e", "tokenizer", 32)
    assert found["architecture"]["name"] == "DALL-E encoder and decoder"
    assert (found["image_size"], found["grid"], found["container"]) == ([112, 112], [14, 14], "torch")
    (kept,) = (tmp_path / "cache" / "dall-e").glob("*/encoder.safetensors")
    assert inspected(beit, kept.parent)["parameters"] == found["parameters"]
    config = transformers.FlavaImageCodebookConfig(hidden_size=8, vocab_size=32)
    transformers.FlavaImageCodebook(config).save_pretrained(tmp_path / "flava")
    theirs = inspected(beit, tmp_path / "flava")
    assert (theirs["kind"], theirs["vocab_size"], theirs["grid"]) == ("tokenizer", 32, [14, 14])
