"""attn-map, finetune --init, eval and predict on every layout that others' weights come in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.models.beit import Beit

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

ABSOLUTE = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}

LAYOUTS = {
    "hf-masked-shared": lambda path: hf_masked(path, use_shared_relative_position_bias=True),
    "hf-masked-absolute": lambda path: hf_masked(path, **ABSOLUTE),
    "hf-classifier": hf_classifier,
    "hf-backbone": hf_backbone,
    "timm": timm_small,
    "released-shared.pth": lambda path: save_released(ReleasedMasked(**SHARED), path),
    "released-absolute.pth": lambda path: save_released(ReleasedMasked(use_abs_pos_emb=True), path, num_heads=4),
    "released-finetuned.pth": lambda path: save_released(randomized(Beit(**PER_BLOCK)), path, wrapped="module"),
    "bare.safetensors": lambda path: save_plain(randomized(Beit(**PER_BLOCK)), path),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / request.param
    LAYOUTS[request.param](path)
    return path


def test_attention_is_drawn_from_each_layout(beit, tmp_path, picture, layout):
    ended = beit("attn-map", picture("a.png", size=(90, 70)), "--model", layout, "-o", tmp_path / "map.png", "--json")
    assert ended.code == 0, ended.err
    document = ended.lines[0]
    assert document["grid"] == [4, 4]
    for drawn in document["maps"]:
        assert np.sum(drawn["attention"]) + drawn["cls"] == pytest.approx(1.0, abs=1e-6)
    with Image.open(tmp_path / "map.png") as panel:
        assert panel.size[0] > 100


def test_finetuning_starts_from_each_layout_at_its_own_and_another_size(beit, tmp_path, labelled_folder, layout):
    for size in ("64", "80"):
        out = tmp_path / size
        flags = ("--recipe", "tiny", "--steps", 2, "--batch-size", 4, "--workers", 0, "--device", "cpu")
        ended = beit("finetune", labelled_folder, "--init", layout, "--size", size, "--out", out, "--json", *flags)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["classes"] == 3
        assert "tensors loaded" in ended.err
        same_head = layout.name == "hf-classifier"  # of the same classes
        assert ("the classifier's head is new" in ended.err) == (not same_head)
        resized = 0 if size == "64" else 1 if "absolute" in layout.name else 3  # pos_embed, or a table a block
        assert (f"tensors loaded, {resized} of them resized" in ended.err) == bool(resized)


@torch.no_grad()
def test_a_classifier_of_others_predicts_as_with_its_own_preprocessing(beit, tmp_path, picture):
    theirs = timm_small(tmp_path / "timm", num_classes=7)
    path = picture("a.png", size=(120, 90))
    transform = create_transform((3, 64, 64), interpolation="bicubic", crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    with Image.open(path) as image:
        expected = theirs(transform(image.convert("RGB")).unsqueeze(0)).softmax(1)[0]
    ended = beit("predict", tmp_path / "timm", path, "--json")
    assert ended.code == 0, ended.err
    top = ended.lines[0]["top"]
    assert top[0][0] == str(int(expected.argmax()))
    assert top[0][1] == pytest.approx(float(expected.max()), abs=1e-4)


def test_a_classifier_of_others_is_measured_by_its_class_names(beit, tmp_path, labelled_folder):
    hf_classifier(tmp_path / "hf")
    ended = beit("eval", tmp_path / "hf", labelled_folder, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"] == 24


def test_imagenet_classes_are_known_by_wordnet_ids(beit, tmp_path, picture):
    timm_small(tmp_path / "timm", num_classes=1000)
    for name in ("n01440764", "n02007558"):
        picture(f"data/{name}/a.png")
    ended = beit("eval", tmp_path / "timm", tmp_path / "data", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"] == 2
    ended = beit("predict", tmp_path / "timm", picture("b.png"), "--json")
    assert not ended.lines[0]["label"].isdecimal()


def test_finetuning_keeps_the_normalization_of_its_origin(beit, tmp_path, labelled_folder):
    hf_masked(tmp_path / "hf", use_shared_relative_position_bias=True)
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]})
    )
    flags = ("--recipe", "tiny", "--steps", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--json")
    ended = beit("finetune", labelled_folder, "--init", tmp_path / "hf", "--out", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    config = json.loads((tmp_path / "run" / "checkpoints" / "step-0000001" / "config.json").read_text())
    assert (config["beit"]["mean"], config["beit"]["std"]) == ([0.4, 0.5, 0.6], [0.3, 0.2, 0.1])
    assert config["pretrained_cfg"]["mean"] == [0.4, 0.5, 0.6]


def test_one_pretraining_finetunes_at_224_384_and_512_pixels(beit, tmp_path, picture):
    for number in range(4):
        picture(f"data/{'ab'[number % 2]}/{number}.png", seed=number)
    released = ReleasedMasked(img_size=224, depth=1, **SHARED)
    path = save_released(released, tmp_path / "p.pth")
    for side in (224, 384, 512):
        flags = ("--size", side, "--recipe", "tiny", "--steps", 1, "--batch-size", 2, "--workers", 0, "--device", "cpu")
        ended = beit("finetune", tmp_path / "data", "--init", path, "--out", tmp_path / str(side), *flags)
        assert ended.code == 0, ended.err
        found = json.loads(beit("inspect", tmp_path / f"{side}", "--json").out)
        assert found["grid"] == [side // 16, side // 16]


def test_a_finetuning_goes_on_without_what_it_started_from(beit, tmp_path, labelled_folder):
    hf_classifier(tmp_path / "hf")
    flags = ("--recipe", "tiny", "--batch-size", 4, "--workers", 0, "--device", "cpu", "--save-every", 2, "--steps", 4)
    run = tmp_path / "halved"
    ended = beit("finetune", labelled_folder, "--init", tmp_path / "hf", "--out", tmp_path / "whole", *flags)
    assert ended.code == 0, ended.err
    shutil.copytree(tmp_path / "whole", run)
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    (tmp_path / "hf" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    shutil.move(tmp_path / "hf", tmp_path / "gone")
    ended = beit("finetune", "--out", run, "--resume")
    assert ended.code == 0, ended.err
    ours, whole = (json.loads((tmp_path / name / "checkpoints" / "step-0000004" / "config.json").read_text())
                   for name in ("halved", "whole"))  # fmt: skip
    assert ours == whole
    weights = [(tmp_path / name / "checkpoints" / "step-0000004" / "model.safetensors").read_bytes()
               for name in ("halved", "whole")]  # fmt: skip
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("names", "kept"), [(("blue", "green", "red"), True), (("a", "b", "c"), False)])
def test_a_classifier_keeps_its_norm_and_for_the_same_classes_its_head(beit, tmp_path, labelled_folder, names, kept):
    hf_classifier(tmp_path / "hf", id2label=dict(enumerate(names)))
    flags = ("--recipe", "tiny", "--steps", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    ended = beit("finetune", labelled_folder, "--init", tmp_path / "hf", "--out", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    assert "fc_norm" not in ended.err
    assert ("head is new (2 tensors)" in " ".join(ended.err.split())) == (not kept)


def test_a_size_other_than_the_models_own_is_said(beit, tmp_path, labelled_folder):
    timm_small(tmp_path / "timm", img_size=80)
    flags = ("--recipe", "tiny", "--steps", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    ended = beit("finetune", labelled_folder, "--init", tmp_path / "timm", "--out", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    assert "Images are 64 x 64 pixels" in ended.err
    assert "has seen 80 x 80" in ended.err


def test_images_of_one_class_can_be_measured(beit, finetuned_run, labelled_folder, tmp_path):
    shutil.copytree(labelled_folder / "red", tmp_path / "data" / "red")
    ended = beit("eval", finetuned_run, tmp_path / "data", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"] == 8
