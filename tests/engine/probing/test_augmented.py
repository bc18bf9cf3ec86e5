"""Linear probes in the release's form: its features, its training in a plain loop, its crops, any number of ranks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, layer_norm
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as torchvision

from beitcli.data.loading.sampler import training_order
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import CropFlipTransform, draw_crop_box, normalize
from beitcli.engine.probing.augmented import steps, train_augmented
from beitcli.engine.probing.feature_extraction import FeatureExtractor, Part
from beitcli.engine.probing.forms import FORMS, ProbeForm
from beitcli.engine.probing.linear_probe import ProbeTraining
from beitcli.models.checkpoints.build import open_backbone, preprocessing
from beitcli.models.networks.pooled_features import pooled_features
from beitcli.models.networks.timm_vit import architecture_of, build_timm
from beitcli.runtime.compute.device import choose_compute
from beitcli.runtime.compute.keyed_rng import keyed_generator, keyed_integer
from tests.helpers.foreign_models import VITS, randomized, timm_small
from tests.helpers.processes import in_processes

SEED, CLASSES = 3, 3
WITHOUT = "timm/vit_base_patch16_siglip_224@random,patch_size=8,embed_dim=24,depth=3,num_heads=2"


# Features


@torch.no_grad()
def blocks_of_timm(model: torch.nn.Module, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(class token, patches) of each block's output, without the final norm."""
    outputs = model.forward_intermediates(
        images, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
    )
    return [(prefix[:, 0], patches) for patches, prefix in outputs]


@pytest.mark.parametrize("name", ["beit", "vit_small_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_class_and_mean_are_timms_class_token_beside_the_mean_of_its_patches(tmp_path, name):
    if name == "beit":
        theirs = timm_small(tmp_path / "beit")
        ours, _ = open_backbone(str(tmp_path / "beit"))
    else:
        theirs = randomized(timm.create_model(name, num_classes=0, **VITS[name]))
        ours = build_timm(architecture_of(name, VITS[name], (32, 32)), 0).eval()
        ours.load_state_dict(theirs.state_dict())
    size = ours.architecture.image_size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    layers = list(range(1, ours.architecture.depth + 1))
    raw = pooled_features(ours, images, layers, "class+mean", norm=False)
    normed = pooled_features(ours, images, layers, "class+mean", norm=True)
    for layer, (token, patches) in enumerate(blocks_of_timm(theirs, images)):
        torch.testing.assert_close(raw[layer], torch.cat((token, patches.mean(dim=1)), dim=1), atol=1e-5, rtol=1e-4)
        both = [layer_norm(each, each.shape[-1:], eps=1e-6) for each in (token, patches)]
        torch.testing.assert_close(normed[layer], torch.cat((both[0], both[1].mean(dim=1)), 1), atol=1e-4, rtol=1e-4)


# Views


def test_views_are_torchvisions_crop_of_the_drawn_box():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    transform = CropFlipTransform(seed=SEED, size=(24, 32), epoch=2)
    flips = 0
    for index in range(20):
        rng = keyed_generator(SEED, "probe view", 2, index)
        left, upper, right, lower = draw_crop_box(70, 50, rng, target_aspect=32 / 24)
        view = torchvision.resized_crop(image, upper, left, lower - upper, right - left, [24, 32])
        if rng.random() < 0.5:
            view, flips = torchvision.hflip(view), flips + 1
        assert np.array_equal(transform(image, 0, index)["images"], np.asarray(view).transpose(2, 0, 1))
    assert 0 < flips < 20


def test_crops_are_distributed_as_torchvisions():
    coordinates = np.zeros((256, 256, 3), dtype=np.uint8)
    coordinates[..., 0], coordinates[..., 1] = np.arange(256)[None], np.arange(256)[:, None]
    image, transform = Image.fromarray(coordinates), CropFlipTransform(seed=0, size=16)
    ours, flips = [], 0
    for index in range(600):
        x, y = transform(image, 0, index)["images"][:2].astype(float)
        width, height = (abs(ends) * 16 / 15 for ends in (x[0, 15] - x[0, 0], y[15, 0] - y[0, 0]))
        ours.append((width * height / 256**2, math.log(width / height), x.mean(), y.mean()))
        flips += x[0, 15] < x[0, 0]
    torch.manual_seed(0)
    theirs = []
    for _ in range(3000):
        upper, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        areas = (width * height / 256**2, math.log(width / height), left + width / 2, upper + height / 2)
        theirs.append(areas)
    spread = np.std(theirs, axis=0)
    assert (abs(np.mean(ours, axis=0) - np.mean(theirs, axis=0)) < 0.15 * spread).all()
    assert np.std(ours, axis=0) == pytest.approx(spread, rel=0.1)
    assert flips / 600 == pytest.approx(0.5, abs=0.08)


# Training


def extractor_of(run: Path, form: ProbeForm, cache: Path) -> FeatureExtractor:
    model, checkpoint = open_backbone(str(run))
    return FeatureExtractor(
        model=model,
        transform=preprocessing(checkpoint, model),
        compute=choose_compute("cpu", "fp32"),
        weights="",
        layers=[2, 4],
        pool=form.pool,
        norm=form.norm,
        cache=cache,
        batch_size=7,
        workers=0,
    )


def loop_by_hand(extractor: FeatureExtractor, data: Path, how: ProbeTraining, place: int) -> torch.nn.Linear:
    """An nn.Linear on one layer, as the release trains it: image by image, torch's optimizer and scheduler."""
    model, source = extractor.model, open_data([str(data)], labelled=True)
    size, count = model.architecture.image_size, len(source)
    width = model.architecture.width * (2 if extractor.pool == "class+mean" else 1)
    head = torch.nn.Linear(width, CLASSES)
    generator = torch.Generator().manual_seed(keyed_integer(how.seed, "probe weights", 0, extractor.layers[place]))
    with torch.no_grad():
        weight = torch.empty(width, CLASSES).normal_(0, how.weight_std, generator=generator) if how.weight_std else None
        head.weight.copy_(weight.T if weight is not None else torch.zeros(CLASSES, width))
        head.bias.zero_()
    bias_decay = 1e-4 if how.decays_bias else 0.0
    groups = [{"params": [head.weight], "weight_decay": 1e-4}, {"params": [head.bias], "weight_decay": bias_decay}]
    optimizer = torch.optim.AdamW(groups, lr=how.lr)
    a_pass = math.ceil(count / how.batch_size)
    turns = how.epochs * (1 if how.anneals_by_epoch else a_pass)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, turns)
    for epoch in range(how.epochs):
        order = training_order(source, how.seed).indices(np.arange(epoch * count, (epoch + 1) * count))[1]
        for begin in range(0, count, how.batch_size):
            chosen = order[begin : begin + how.batch_size].tolist()
            views = [CropFlipTransform(seed=how.seed, size=size)(source.image(i), epoch, i)["images"] for i in chosen]
            images = normalize(torch.from_numpy(np.stack(views)), *extractor.transform.normalization)
            features = pooled_features(model, images, extractor.layers, extractor.pool, extractor.norm)[place]
            labels = torch.tensor([source.label(i) for i in chosen])
            optimizer.zero_grad()
            cross_entropy(head(features), labels).backward()
            optimizer.step()
            if not how.anneals_by_epoch:
                schedule.step()
        if how.anneals_by_epoch:
            schedule.step()
    return head


@pytest.mark.parametrize("name", ["paper", "release"])
def test_heads_of_augmented_images_equal_a_plain_loop_over_the_same_views(
    tmp_path, labelled_folder, pretrained_run, name
):
    form = FORMS[name]
    trained = {"weight_std": form.weight_std, "decays_bias": form.decays_bias}
    how = ProbeTraining(epochs=3, batch_size=10, seed=SEED, anneals_by_epoch=form.anneals_by_epoch, **trained)
    extractor = extractor_of(pretrained_run, form, tmp_path)
    probes, bad = train_augmented(
        extractor, open_data([str(labelled_folder)], labelled=True), how, {}, lambda bad: None
    )
    assert (bad, probes is not None) == ([], True)
    for place in (0, 1):
        head = loop_by_hand(extractor, labelled_folder, how, place)
        torch.testing.assert_close(probes.weight[place].T, head.weight, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(probes.bias[place, 0], head.bias, atol=2e-5, rtol=1e-4)
    assert list(tmp_path.iterdir()) == []  # features of such views are not kept


def test_steps_are_cut_by_position_whatever_the_batches():
    values = np.arange(11, dtype=np.float32)
    expected = [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10]]  # 5 is unreadable
    for batch in (1, 3, 4, 11):
        parts = []
        for begin in range(0, 11, batch):
            good = [place for place in range(begin, min(11, begin + batch)) if place != 5]
            bad = [(5, "x.png", "broken")] if begin <= 5 < begin + batch else []
            parts.append(Part(values[None, good, None], np.array(good, dtype=np.int64), good, bad))
        found = list(steps(parts, 11, 4))
        assert [labels.tolist() for _, _, labels in found] == expected
        assert [(number, features[0, :, 0].tolist()) for number, features, _ in found] == list(enumerate(expected))


# The command


@pytest.fixture
def linear(beit, tmp_path, labelled_folder, pretrained_run):
    """`linear(*flags)`: the JSON of a linear probe on the labelled folder by itself."""

    def run(*flags, model=pretrained_run, data=labelled_folder, code=0):
        words = ("--protocol", "linear", "--train", data, "--workers", 0, "--device", "cpu")
        ended = beit("eval", model, data, *words, "--feature-cache", tmp_path / "cache", *flags)
        assert ended.code == code, ended.err
        run.err = ended.err
        return json.loads(ended.out) if ended.out else None

    return run


RELEASE = ("--probe-form", "release", "--probe-epochs", 3, "--batch-size", 5, "--probe-batch-size", 8)


def test_the_release_form_is_reported_and_repeats_with_any_workers(linear, tmp_path):
    document = linear(*RELEASE, "--layer", "sweep")
    told = {name: document[name] for name in ("form", "pool", "normed", "augmented", "standardized")}
    assert told == {
        "form": "release",
        "pool": "class+mean",
        "normed": False,
        "augmented": True,
        "standardized": False,
    }
    assert len(document["layers"]) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1  # of the measured images alone
    assert linear(*RELEASE, "--layer", "sweep", "--workers", 2) == document
    assert linear(*RELEASE, "--layer", 3)["top1"] == document["layers"][2]["top1"]


def test_the_paper_form_is_the_default_and_takes_augmentation(linear):
    document = linear("--probe-epochs", 2)
    assert (document["form"], document["pool"], document["normed"], document["augmented"]) == (
        "paper",
        "mean",
        True,
        False,
    )
    augmented = linear("--augment", "--standardize", "--probe-epochs", 40, "--probe-lr", 2e-2)
    assert (augmented["augmented"], augmented["pool"]) == (True, "mean")
    assert augmented["top1"] >= 0.9
    mixed = linear("--probe-form", "release", "--no-augment", "--pool", "mean", "--probe-epochs", 2)
    assert (mixed["form"], mixed["pool"], mixed["normed"], mixed["augmented"]) == ("release", "mean", False, False)


def test_a_model_without_a_class_token_is_refused_where_it_is_read(linear):
    linear("--probe-form", "release", "--size", 32, model=WITHOUT, code=2)
    assert "has no class token" in linear.err
    assert "which --probe-form release reads" in linear.err
    assert "--pool mean" in linear.err
    linear("--pool", "cls+mean", "--size", 32, model=WITHOUT, code=2)
    assert "which --pool cls+mean reads" in linear.err
    assert linear(*RELEASE, "--pool", "mean", "--size", 32, model=WITHOUT)["images"] == 24


def test_unreadable_images_are_left_out_of_augmented_training(linear, tmp_path, labelled_folder):
    data = tmp_path / "data"
    shutil.copytree(labelled_folder, data)
    (data / "red" / "01.png").write_bytes(b"broken")
    document = linear(*RELEASE, data=data)
    assert (document["images"], document["bad"], document["train_images"]) == (23, 1, 23)
    for which in ("training", "measured"):
        assert linear.err.count(f"warning: 1 {which} image is left out, the first: ") == 1
    for number in (3, 5):
        (data / "red" / f"0{number}.png").write_bytes(b"broken")
    linear(*RELEASE, data=data, code=3)


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tmp_path, labelled_folder, pretrained_run):
    found = []
    for size in (1, 2):
        words = ["eval", pretrained_run, labelled_folder, "--train", labelled_folder, "--protocol", "linear", *RELEASE]
        words += ["--layer", "sweep", "--standardize", "--device", "cpu", "--workers", 0, "--json"]
        first, *others = in_processes(size, [*words, "--feature-cache", tmp_path / str(size)])
        assert first.code == 0, first.err
        assert [(each.code, each.out) for each in others] == [(0, "")] * len(others)
        found.append(first.out)
    assert found[0] == found[1]
