"""The systems BEiT is compared with, through the same commands: finetune, resume, eval, predict, attn-map, probes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from beitcli.models.checkpoints.build import open_classifier
from beitcli.runtime.storage.checkpoint import load_tensors
from tests.helpers.foreign_models import SMALL_VIT, timm_vit
from tests.helpers.hub_server import HubServer

TINY = "timm/vit_tiny_patch16_224@random,patch_size=8,depth=2,embed_dim=24,num_heads=2"
FLAGS = ("--recipe", "tiny", "--size", 32, "--batch-size", 8, "--workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory, labelled_folder):
    """4 steps of a small ViT of timm's from scratch; checkpoints of steps 2 and 4."""
    from beitcli.cli.app import main

    run = tmp_path_factory.mktemp("vit") / "run"
    words = ["finetune", labelled_folder, "--init", TINY, *FLAGS, "--steps", 4, "--save-every", 2, "--out", run]
    assert main([str(word) for word in words]) == 0
    return run


def test_finetuning_trains_every_parameter(beit, labelled_folder, tmp_path):
    timm_vit(tmp_path / "vit", "vit_small_patch16_224")
    words = ("--init", tmp_path / "vit", "--out", tmp_path / "run", "--steps", 2, "--warmup-steps", 0, "--ema", 0)
    ended = beit("finetune", labelled_folder, *words, *FLAGS)
    assert ended.code == 0, ended.err
    assert "the classifier's head is new (2 tensors)" in " ".join(ended.err.split())
    after = load_tensors(tmp_path / "run" / "checkpoints" / "step-0000002" / "model.safetensors")
    before = load_tensors(tmp_path / "vit" / "model.safetensors")
    assert after.keys() == before.keys()
    assert [name for name in before if name.startswith("head") == (before[name].shape == after[name].shape)] == []
    still = [n for n, t in before.items() if not n.startswith("head") and torch.equal(t, after[n])]
    assert still == []


@torch.no_grad()
def test_a_checkpoint_opens_in_timm_as_it_lies(vit_run):
    theirs = timm.create_model(f"local-dir:{vit_run / 'checkpoints' / 'step-0000004'}", pretrained=True).eval()
    ours, checkpoint = open_classifier(str(vit_run))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))
    assert theirs.pretrained_cfg["label_names"] == ["blue", "green", "red"] == list(checkpoint.classes)
    assert tuple(theirs.pretrained_cfg["mean"]) == checkpoint.normalization[0]


def test_it_resumes_bit_for_bit(beit, vit_run, labelled_folder, tmp_path):
    words = ("--init", TINY, *FLAGS, "--save-every", 2, "--out", tmp_path / "run", "--steps", 4)
    assert beit("finetune", labelled_folder, *words).code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    ended = beit("finetune", "--out", tmp_path / "run", "--resume", "--workers", 0)
    assert ended.code == 0, ended.err
    for name in ("model.safetensors", "trainer.safetensors"):
        first, second = (run / "checkpoints" / "step-0000004" / name for run in (vit_run, tmp_path / "run"))
        assert first.read_bytes() == second.read_bytes()


def test_eval_repeats_finetunes_number_and_predicts(beit, vit_run, labelled_folder, tmp_path):
    report = json.loads(beit("eval", vit_run, labelled_folder, "--workers", 0).out)
    lines = beit("predict", vit_run, labelled_folder, "--workers", 0).lines
    right = sum(line["label"] in line["path"].split("/") for line in lines)
    assert (report["images"], report["top1"]) == (24, right / 24)


def test_attention_is_drawn_as_a_picture_and_a_page(beit, vit_run, labelled_folder, tmp_path):
    image = labelled_folder / "red" / "00.jpg"
    for name in ("map.png", "page.html"):
        ended = beit("attn-map", image, "--model", vit_run, "-o", tmp_path / name, "--json")
        assert ended.code == 0, ended.err
        for drawn in ended.lines[0]["maps"]:
            assert np.sum(drawn["attention"]) + drawn["cls"] == pytest.approx(1.0, abs=1e-6)
    timm_vit(tmp_path / "deit", "deit_tiny_distilled_patch16_224")
    ended = beit("attn-map", image, "--model", tmp_path / "deit", "-o", tmp_path / "deit.html", "--json")
    assert ended.code == 0, ended.err
    assert ended.lines[0]["grid"] == [4, 4]


def test_inspect_tells_what_it_is_and_export_refuses(beit, vit_run, tmp_path):
    found = json.loads(beit("inspect", vit_run).out)
    assert (found["format"], found["kind"], found["classes"], found["grid"]) == ("beit", "classifier", 3, [4, 4])
    assert (found["architecture"]["name"], found["architecture"]["depth"]) == ("vit_tiny_patch16_224", 2)
    ended = beit("export", vit_run, "--to", "hf", "-o", tmp_path / "out")
    assert (ended.code, "no BEiT" in ended.err) == (2, True)
    assert beit("mask-preview", "--model", vit_run, "sample", "--limit", 1, "-o", tmp_path / "a.png").code == 4


@torch.no_grad()
def test_a_folder_of_timms_predicts_as_with_its_own_preprocessing(beit, tmp_path, picture):
    theirs = timm_vit(tmp_path / "vit", "vit_small_patch16_224", classes=7)
    path = picture("a.png", size=(120, 90))
    transform = create_transform((3, 32, 32), interpolation="bicubic", crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    with Image.open(path) as image:
        expected = theirs(transform(image.convert("RGB")).unsqueeze(0)).softmax(1)[0]
    ended = beit("predict", tmp_path / "vit", path, "--json")
    assert ended.code == 0, ended.err
    top = ended.lines[0]["top"]
    assert top[0][0] == str(int(expected.argmax()))
    assert top[0][1] == pytest.approx(float(expected.max()), abs=1e-4)


def test_weights_come_from_the_hub_by_timms_name(beit, tmp_path, monkeypatch, labelled_folder):
    """DINO's repository holds a backbone without a head; here a small one under its name."""
    timm_vit(tmp_path / "dino", "vit_small_patch16_224", classes=0)
    files = {path.name: path.read_bytes() for path in (tmp_path / "dino").iterdir()}
    with HubServer({"timm/vit_small_patch16_224.dino": files}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        words = ("--train", labelled_folder, "--protocol", "knn", "--layer", "sweep", "--workers", 0, "--pool", "class")
        ended = beit("eval", "timm/vit_small_patch16_224.dino", "hf://timm/vit_small_patch16_224.dino",
                     tmp_path / "dino", labelled_folder, *words)  # fmt: skip
        assert ended.code == 0, ended.err
        first, second, third = json.loads(ended.out)
        assert len(first["layers"]) == SMALL_VIT["depth"]
        assert first["layers"] == second["layers"] == third["layers"]
        ended = beit("finetune", labelled_folder, "--init", "timm/vit_small_patch16_224.dino", *FLAGS, "--steps", 1,
                     "--out", tmp_path / "run")  # fmt: skip
        assert ended.code == 0, ended.err
        assert "tensors loaded" in ended.err
        assert len([each for each in server.requests if each.method == "GET" and "safetensors" in each.file]) == 1


# Shapes without weights


def test_from_scratch_in_the_shape_of_a_run(beit, tmp_path, labelled_folder, pretrained_run):
    out = tmp_path / "run"
    ended = beit("finetune", labelled_folder, "--init", f"{pretrained_run}@random", *FLAGS, "--steps", 1, "--out", out)
    assert ended.code == 0, ended.err
    assert "From scratch, shaped as" in ended.err
    ended = beit("eval", out, labelled_folder, "--workers", 0)
    assert json.loads(ended.out)["images"] == 24


# Intermediate finetuning


def test_finetuning_on_other_classes_keeps_all_but_the_head(beit, tmp_path, finetuned_run, picture):
    for number in range(8):
        picture(f"data/{'ab'[number % 2]}/{number}.png", seed=number)
    words = ("--init", finetuned_run, "--out", tmp_path / "run", "--steps", 1, "--lr", 1e-12, "--min-lr", 0)
    ended = beit("finetune", tmp_path / "data", *words, *FLAGS)
    assert ended.code == 0, ended.err
    assert (
        "tensors loaded; what followed its blocks is dropped (2 tensors); the classifier's head is new (2 tensors)\n"
        in ended.err
    )
    before = load_tensors(finetuned_run / "checkpoints" / "step-0000004" / "model.safetensors")
    after = load_tensors(tmp_path / "run" / "checkpoints" / "step-0000001" / "model.safetensors")
    assert (before["head.weight"].shape[0], after["head.weight"].shape[0]) == (3, 2)
    for name in before.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


# Repeated augmentation and the average of weights


def test_repeats_resume_bit_for_bit_and_differ_from_single_views(beit, tmp_path, labelled_folder):
    words = ("--init", TINY, *FLAGS, "--steps", 4, "--save-every", 2, "--min-crop", 0.3, "--ema", 0.9)
    for name, repeats in (("once", 1), ("thrice", 3), ("halved", 3)):
        ended = beit("finetune", labelled_folder, *words, "--repeats", repeats, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
    shutil.rmtree(tmp_path / "halved" / "checkpoints" / "step-0000004")
    assert beit("finetune", "--out", tmp_path / "halved", "--resume", "--workers", 2).code == 0
    bytes_of = {n: (tmp_path / n / "checkpoints" / "step-0000004" / "model.safetensors").read_bytes()
                for n in ("once", "thrice", "halved")}  # fmt: skip
    assert bytes_of["halved"] == bytes_of["thrice"]
    assert bytes_of["thrice"] != bytes_of["once"]
    ended = beit("finetune", labelled_folder, *words, "--repeats", 0, "--out", tmp_path / "none")
    assert (ended.code, "--repeats" in ended.err) == (2, True)
