"""Preprocessing that a checkpoint states: the pixels are those of transformers' processors and of timm's transforms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config

from beitcli.config.eval_crop import EvalCrop, crop_of, pct_of_sides
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.errors import StorageError
from beitcli.models.checkpoints.hf_preprocessing import hf_crop, hf_preprocessing
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import hf_classifier, timm_small

SHAPES = ((120, 200), (200, 120), (97, 149), (64, 64))  # (H, W)


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def ours(model: Path, image: Image.Image) -> torch.Tensor:
    """(3, H, W) normalized, as `eval` and `predict` take it."""
    opened = open_model(str(model))
    view = evaluation_view(opened.architecture.image_size, opened.crop, opened.normalization)
    return normalize(torch.from_numpy(view(image)["images"])[None], *opened.normalization)[0]


PROCESSORS: dict[str, dict[str, Any]] = {
    "integers, squashed": {
        "crop_size": 64, "do_center_crop": False, "do_normalize": True, "do_resize": True, "resample": 2, "size": 64,
        "feature_extractor_type": "BeitFeatureExtractor", "image_processor_type": "BeitImageProcessor"},
    "squashed": {
        "image_processor_type": "BeitImageProcessor", "size": {"height": 64, "width": 64}, "do_center_crop": False,
        "crop_size": {"height": 64, "width": 64}, "resample": 3},
    "squashed and cropped": {
        "image_processor_type": "BeitImageProcessor", "size": {"height": 74, "width": 74}, "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64}, "resample": 3},
    "DeiT's": {"image_processor_type": "DeiTImageProcessor", "size": 73, "do_center_crop": True, "crop_size": 64},
    "ViT's": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
    "shortest edge": {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 72}, "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64}, "resample": 2},
    "shortest edge as a number": {"image_processor_type": "BitImageProcessor", "size": 67, "crop_size": 64},
    "ConvNext's, cropped": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}},
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_processor(tmp_path, kind):
    hf_classifier(tmp_path)
    stated = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]} | PROCESSORS[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for shape in SHAPES:
        image = picture(*shape)
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        levels = (ours(tmp_path, image) - theirs).abs() * torch.tensor(stated["image_std"]).view(3, 1, 1) * 255
        assert float(levels.max()) <= 4, (shape, float(levels.max()))
        assert float(levels.mean()) <= 0.5


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("pct", "interpolation"), [(1.0, "bilinear"), (0.9, "bicubic")])
def test_pixels_are_those_of_timms_crop_mode(tmp_path, mode, pct, interpolation):
    timm_small(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"] |= {"crop_pct": pct, "crop_mode": mode, "interpolation": interpolation}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=False)
    transform = create_transform(**resolve_data_config({}, model=model))
    std = torch.tensor(model.pretrained_cfg["std"]).view(3, 1, 1)
    for shape in SHAPES:
        image = picture(*shape)
        levels = (ours(tmp_path, image) - transform(image)).abs() * std * 255
        assert float(levels.max()) <= 4, (shape, float(levels.max()))
        assert float(levels.mean()) <= 0.5


@pytest.mark.parametrize("size", [(48, 80), (80, 48)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_pixels_of_oblong_models_are_timms(size, mode):
    crop = EvalCrop(crop_pct=0.9, crop_mode=mode)
    transform = create_transform((3, *size), interpolation="bicubic", crop_pct=0.9, crop_mode=mode, normalize=False)
    for shape in ((120, 200), (200, 120), (97, 149)):
        image = picture(*shape)
        levels = np.abs(evaluation_view(size, crop)(image)["images"].astype(int) - transform(image).numpy().astype(int))
        assert levels.max() <= 4, (shape, levels.max())


def test_a_processor_that_states_no_crop_leaves_the_releases():
    assert hf_crop({"image_mean": [0.5] * 3}) == EvalCrop()
    assert hf_crop({}).pct((224, 224)) == 0.875
    assert hf_crop({"do_resize": False, "do_center_crop": True}).pct((64, 64)) == 1.0


@pytest.mark.parametrize("resized", [64, 65, 71, 74, 249, 255])
def test_a_fraction_of_two_sides_gives_the_same_side_back(resized):
    for crop in (17, 64, 63):
        if crop <= resized:
            assert EvalCrop(crop_pct=pct_of_sides(crop, resized)).resized((crop, crop)) == (resized, resized)


@pytest.mark.parametrize("crop", [
    EvalCrop(), EvalCrop(crop_pct=0.9), EvalCrop(crop_pct=1.0), EvalCrop(crop_mode="squash", crop_pct=0.95),
    EvalCrop(crop_mode="squash", crop_pct=1.0, interpolation="lanczos"),
])  # fmt: skip
def test_a_written_processor_reads_back_as_the_same_crop(crop):
    size = (224, 224)
    again = hf_crop(hf_preprocessing(size, ((0.5,) * 3, (0.5,) * 3), crop))
    assert again.resized(size) == crop.resized(size)
    assert (again.crop_mode, again.interpolation) == (crop.crop_mode, crop.interpolation)


def test_settings_of_a_crop_hold_what_differs_only():
    assert EvalCrop().settings() == {}
    crop = EvalCrop(crop_pct=0.9, crop_mode="squash", interpolation="bilinear", rounds_down=True)
    assert crop_of(crop.settings(), "crop_share") == crop
    assert EvalCrop(crop_pct=0.9).at_other_size() == EvalCrop()
    assert crop.at_other_size() == crop


@pytest.mark.parametrize("stated", [
    {"size": "big"}, {"size": {"shortest_edge": -3}}, {"resample": 17}, {"resample": "bicubic"}, {"size": [1, 2, 3]},
    {"size": 64, "do_center_crop": True, "crop_size": {"height": "x"}},
])  # fmt: skip
def test_a_processor_of_nonsense_is_refused_with_its_value(tmp_path, stated):
    hf_classifier(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(StorageError, match="cannot be read"):
        open_model(str(tmp_path))


def test_an_unknown_crop_mode_of_timm_is_refused(tmp_path):
    timm_small(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["pretrained_cfg"]["crop_mode"] = "fisheye"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StorageError, match="fisheye"):
        open_model(str(tmp_path))


def test_a_squash_is_kept_by_predict_finetuning_and_every_export(beit, tmp_path, labelled_folder):
    hf_classifier(tmp_path / "hf")
    processor = PROCESSORS["integers, squashed"] | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    flags = ("--recipe", "tiny", "--steps", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--json")
    ended = beit("finetune", labelled_folder, "--init", tmp_path / "hf", "--out", tmp_path / "run", *flags)
    assert ended.code == 0, ended.err
    squash = EvalCrop(crop_mode="squash", crop_pct=1.0, interpolation="bilinear")
    assert open_model(str(tmp_path / "run")).crop == squash
    settings = json.loads((tmp_path / "run" / "checkpoints" / "step-0000001" / "config.json").read_text())
    assert (settings["pretrained_cfg"]["crop_mode"], settings["pretrained_cfg"]["crop_pct"]) == ("squash", 1.0)
    image = picture(60, 200)
    image.save(tmp_path / "a.png")
    scores = [beit("predict", tmp_path / "run", tmp_path / "a.png", "--json").lines[0]["score"]]
    for to in ("timm", "hf", "official"):
        ended = beit("export", tmp_path / "run", "--to", to, "-o", tmp_path / f"to-{to}", "--json")
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["pixel_difference"] <= 3
        assert open_model(str(tmp_path / f"to-{to}")).crop == squash
        scores.append(beit("predict", tmp_path / f"to-{to}", tmp_path / "a.png", "--json").lines[0]["score"])
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-6)
