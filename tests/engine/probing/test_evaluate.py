"""`eval --protocol knn|linear` from end to end: caches, layers, every kind of MODEL, data with faults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.io import eval_arguments
from beitcli.engine.report.intervals import share_interval
from beitcli.models.checkpoints.build import open_backbone
from beitcli.models.checkpoints.locate import names_a_model
from tests.helpers.foreign_models import hf_classifier, hf_masked, timm_small

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def probed(beit, tmp_path, labelled_folder):
    """`probed(MODEL, *flags)`: the JSON of kNN on the labelled folder by itself, features kept in the test's folder."""

    def run(model, *flags, data=labelled_folder, train=labelled_folder, code=0):
        words = (
            "--workers",
            0,
            "--device",
            "cpu",
            "--feature-cache",
            tmp_path / "cache",
        )
        words += () if "--protocol" in flags else ("--protocol", "knn", "--k", 3)
        trained = () if train is None else ("--train", train)
        ended = beit("eval", model, data, *trained, *words, *flags)
        assert ended.code == code, ended.err
        run.err = ended.err
        return json.loads(ended.out) if ended.out else None

    return run


@torch.no_grad()
def by_hand(run: Path, data: Path) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Features of every block through timm's own intermediates, one image at a time."""
    model, _ = open_backbone(str(run))
    source = open_data([str(data)], labelled=True)
    found: dict[int, list[np.ndarray]] = {}
    for index in range(len(source)):
        image = torch.from_numpy(evaluation_view((32, 32))(source.image(index))["images"])[None]
        outputs = model.forward_intermediates(
            normalize(image, MEAN, STD), norm=False, output_fmt="NLC", intermediates_only=True
        )
        for layer, patches in enumerate(outputs, start=1):
            centred = patches - patches.mean(dim=-1, keepdim=True)
            normed = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            found.setdefault(layer, []).append(normed.mean(dim=1)[0].numpy())
    labels = np.array([source.label(index) for index in range(len(source))])
    return {layer: np.stack(values) for layer, values in found.items()}, labels


def test_a_sweep_equals_scikit_learn_on_features_by_hand(probed, tmp_path, labelled_folder, pretrained_run):
    train = tmp_path / "train"
    shutil.copytree(labelled_folder, train)
    for path in sorted(train.glob("*/0[0-3]*")):
        path.unlink()
    document = probed(pretrained_run, "--layer", "sweep", train=train)
    features, labels = by_hand(pretrained_run, labelled_folder)
    known, known_labels = by_hand(pretrained_run, train)
    assert [each["layer"] for each in document["layers"]] == [1, 2, 3, 4]
    for each in document["layers"]:
        theirs = KNeighborsClassifier(
            n_neighbors=3, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(known[each["layer"]], known_labels)
        assert each["top1"] == theirs.score(features[each["layer"]], labels)
    best = max(document["layers"], key=lambda each: (each["top1"], each["top5"]))
    assert (document["layer"], document["top1"]) == (best["layer"], best["top1"])
    assert (document["images"], document["train_images"], document["classes"], document["k"]) == (24, 12, 3, 3)
    assert document["top1_interval"] is None  # the best of several on the same images has none


def test_one_layer_has_the_interval_of_its_images(probed, pretrained_run):
    document = probed(pretrained_run, "--layer", 3)
    assert document["top1_interval"] == pytest.approx(share_interval(document["top1"], 24))


def taken_from(said: str) -> list[str]:
    """The sets whose features were kept."""
    return re.findall(r"^Features of [\d,]+ (\w+) images of .* are taken from ", said, re.MULTILINE)


def test_features_are_kept_and_serve_every_layer(probed, tmp_path, pretrained_run):
    whole = probed(pretrained_run, "--layer", "sweep")
    assert taken_from(probed.err) == ["measured"]  # which are the training images here, and were just written
    (about,) = (tmp_path / "cache").glob("*/about.json")
    written = about.stat().st_mtime_ns
    again = probed(pretrained_run, "--layer", "sweep")
    assert (taken_from(probed.err), again) == (["training", "measured"], whole)
    third = probed(pretrained_run, "--layer", 3)
    assert taken_from(probed.err) == ["training", "measured"]
    assert about.stat().st_mtime_ns == written
    assert third["top1"] == whole["layers"][2]["top1"]
    assert probed(pretrained_run, "--layer", -2)["layer"] == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1  # one data set for both


@pytest.mark.parametrize(
    "change", ["size", "normalization", "precision", "pool", "both", "norm", "limit", "weights", "pixels", "damage"]
)
def test_features_of_anything_else_are_made_anew(probed, tmp_path, labelled_folder, pretrained_run, change):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(labelled_folder, data)
    shutil.copytree(pretrained_run, run)
    probed(run, data=data, train=data)
    flags = {"size": ("--size", 40), "normalization": ("--normalization", "inception"), "pool": ("--pool", "class")}
    flags |= {"precision": ("--precision", "bf16"), "limit": ("--limit", 12)}
    flags |= {"both": ("--pool", "class+mean"), "norm": ("--no-feature-norm",)}
    if change == "weights":
        shutil.rmtree(run / "checkpoints" / "step-0000004")
    elif change == "pixels":
        shutil.copy(data / "red" / "01.png", data / "red" / "03.png")
    elif change == "damage":
        (layer,) = (tmp_path / "cache").glob("*/layer-04.npy")
        whole = layer.read_bytes()
        layer.write_bytes(whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:])
    probed(run, *flags.get(change, ()), data=data, train=data)
    assert change != "damage" or layer.read_bytes() == whole
    assert taken_from(probed.err) == ["measured"] * (change != "limit")  # it finds what training just wrote
    assert len(list((tmp_path / "cache").iterdir())) == {"damage": 1, "limit": 3}.get(change, 2)  # its order is another


@pytest.mark.parametrize(
    "make", [hf_classifier, lambda p: hf_masked(p, use_shared_relative_position_bias=True), timm_small]
)
def test_models_of_others_are_probed(probed, tmp_path, make):
    make(tmp_path / "theirs")
    document = probed(tmp_path / "theirs", "--layer", "sweep")
    assert len(document["layers"]) == 3
    assert document["top1"] > 0.5  # every image has itself among its neighbours


def test_a_shape_without_weights_is_probed_and_follows_the_seed(probed, tmp_path, pretrained_run, finetuned_run):
    first = probed(f"{pretrained_run}@random", "--layer", "sweep")
    assert len(first["layers"]) == 4
    assert first["top1"] > 0.5
    before = len(list((tmp_path / "cache").iterdir()))
    probed(f"{finetuned_run}@random", "--layer", "sweep")  # the same shape, the same weights
    assert len(list((tmp_path / "cache").iterdir())) == before
    probed(f"{pretrained_run}@random", "--layer", "sweep", "--seed", 1)
    assert len(list((tmp_path / "cache").iterdir())) == before + 1


def test_a_linear_probe_learns_what_is_there(probed, pretrained_run):
    flags = ("--protocol", "linear", "--layer", "sweep", "--standardize", "--probe-epochs", 60)
    document = probed(pretrained_run, *flags)
    assert document["top1"] >= 0.9
    assert (document["k"], document["standardized"], len(document["layers"])) == (None, True, 4)
    assert probed(pretrained_run, *flags) == document


def test_splits_of_the_data_are_used_where_no_train_is_given(probed, pretrained_run, labelled_folder, tmp_path):
    document = probed(pretrained_run, "--limit", 20, "--size", 32, data="sample", train=None)
    assert (document["images"], document["train_images"], document["train"]) == (20, 20, "sample, split train")
    probed(pretrained_run, train=None, code=2)
    assert "--train" in probed.err


def test_data_without_labels_is_refused(probed, pretrained_run, picture, labelled_folder):
    unlabelled = picture("flat/a.png").parent
    probed(pretrained_run, train=unlabelled, code=3)
    assert "no labels" in probed.err or "one class" in probed.err
    probed(pretrained_run, data=unlabelled, code=3)


def test_classes_that_training_lacks_count_as_wrong(probed, tmp_path, labelled_folder, pretrained_run):
    shutil.copytree(labelled_folder, tmp_path / "train")
    shutil.rmtree(tmp_path / "train" / "red")
    document = probed(pretrained_run, train=tmp_path / "train")
    assert "1 classes of DATA have no image in --train (first: 'red'): their 8 images count as wrong" in probed.err
    assert document["images"] == 24
    assert document["top1"] <= 16 / 24
    part = tmp_path / "part"
    shutil.copytree(labelled_folder / "red", part / "red")
    assert probed(pretrained_run, data=part)["images"] == 8  # classes that DATA lacks are no matter
    probed(pretrained_run, data=part, train=tmp_path / "train", code=3)
    assert "No class" in probed.err


def test_more_neighbours_than_images_and_a_single_image(probed, tmp_path, labelled_folder, pretrained_run):
    few = tmp_path / "few"
    for name in ("red", "blue"):
        (few / name).mkdir(parents=True)
        shutil.copy(labelled_folder / name / "01.png", few / name)
    document = probed(pretrained_run, "--k", 500, train=few)
    assert (document["k"], document["train_images"]) == (2, 2)
    assert "--k is 500" in probed.err
    one = tmp_path / "one" / "red" / "a.png"
    one.parent.mkdir(parents=True)
    shutil.copy(labelled_folder / "red" / "01.png", one)
    assert probed(pretrained_run, data=tmp_path / "one", train=few)["top1"] == 1.0
    assert probed(pretrained_run, "--protocol", "linear", data=tmp_path / "one", train=few)["images"] == 1


def test_unreadable_images_are_left_out_on_both_sides(probed, tmp_path, labelled_folder, pretrained_run):
    shutil.copytree(labelled_folder, tmp_path / "data")
    (tmp_path / "data" / "red" / "01.png").write_bytes(b"broken")
    document = probed(pretrained_run, data=tmp_path / "data", train=tmp_path / "data")
    assert (document["images"], document["bad"], document["train_images"]) == (23, 1, 23)
    for number in (3, 5):
        (tmp_path / "data" / "red" / f"0{number}.png").write_bytes(b"broken")
    probed(pretrained_run, data=tmp_path / "data", code=3)


@pytest.mark.parametrize(("flags", "said"), [
    (("--layer", 5), "4 blocks"), (("--layer", 0), "--layer is '0'"), (("--layer", "all"), "--layer is 'all'"),
    (("--protocol", "head"), "--train is for probes"), (("--temperature", 0), "--temperature"),
    (("--augment",), "--augment is for linear probes"), (("--probe-form", "release"), "--probe-form release is for"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(probed, pretrained_run, flags, said):
    probed(pretrained_run, *flags, code=2)
    assert said in probed.err


# Several models


def test_several_models_give_one_array_in_their_order(beit, finetuned_run, pretrained_run, labelled_folder, tmp_path):
    flags = ("--protocol", "knn", "--train", labelled_folder, "--workers", 0, "--feature-cache", tmp_path)
    ended = beit("eval", finetuned_run, pretrained_run, f"{pretrained_run}@random", labelled_folder, *flags)
    assert ended.code == 0, ended.err
    documents = json.loads(ended.out)
    assert [each["model"] for each in documents] == [
        str(finetuned_run),
        str(pretrained_run),
        f"{pretrained_run}@random",
    ]
    assert f"data {labelled_folder}." in ended.err
    for model, document in zip((finetuned_run, pretrained_run), documents, strict=False):
        assert json.loads(beit("eval", model, labelled_folder, *flags).out) == document


def test_a_model_that_fails_costs_only_its_own_figures(beit, finetuned_run, pretrained_run, labelled_folder, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    ended = beit("eval", finetuned_run, broken, pretrained_run, finetuned_run, labelled_folder, "--workers", 0)
    documents = json.loads(ended.out)
    assert (ended.code, len(documents)) == (4, 4)
    assert [sorted(each)[:1] for each in documents] == [["bad"], ["data"], ["data"], ["bad"]]
    assert documents[0] == documents[3]
    assert "is a pretrained model, not finetuned yet" in documents[2]["error"]
    assert "2 of 4 models could not be measured" in ended.err


def test_which_arguments_are_models_is_told_by_what_they_are(beit, finetuned_run, labelled_folder, tmp_path):
    one = json.loads(beit("eval", finetuned_run, labelled_folder, labelled_folder, "--workers", 0).out)
    assert one["images"] == 48  # two DATA, as ever
    shutil.copytree(labelled_folder, tmp_path / "images")
    (tmp_path / "images" / "model.safetensors").write_bytes(b"stray")
    ended = beit("eval", finetuned_run, tmp_path / "images", "--workers", 0)
    assert json.loads(ended.out)["images"] == 24  # the last is DATA whatever lies in it
    assert "Read as: models" in ended.err
    ended = beit("eval", finetuned_run, labelled_folder, tmp_path / "images", "--workers", 0)
    assert json.loads(ended.out)["images"] == 48  # so is what follows DATA
    ended = beit("eval", finetuned_run, finetuned_run, "timm/vit_tiny_patch16_224", "--workers", 0)
    assert (ended.code, "DATA is missing" in ended.err) == (2, True)
    ended = beit("eval", finetuned_run, tmp_path / "absent.pth", labelled_folder)
    assert (ended.code, "There is no model at" in ended.err) == (4, True)


def test_each_argument_is_looked_at_once(beit, finetuned_run, labelled_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(eval_arguments, "names_a_model", lambda each: seen.append(each) or names_a_model(each))
    assert beit("eval", finetuned_run, labelled_folder, labelled_folder, "--limit", 2, "--workers", 0).code == 0
    assert seen == [str(labelled_folder)] * 2
