"""Images that are no squares, from pretraining to attention maps: 32 x 48 pixels, patches of 8, a grid of 4 x 6."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.transforms.base import center_box, normalize
from beitcli.data.transforms.reference_points import CentralCrop
from beitcli.engine.events import Warned
from beitcli.engine.finetune import finetune
from beitcli.engine.pretrain import pretrain
from beitcli.errors import UsageError
from beitcli.models.checkpoints.build import open_classifier, open_masked_image_model
from beitcli.runtime.storage.checkpoint import load_tensors, newest_checkpoint, step_folders
from beitcli.tokenizers.open import open_tokenizer


def pretrained(data: Path, out: Path, on_event: Callable = lambda event: None, **more: Any):
    flags = {
        "recipe": "tiny", "data": [str(data)], "image_size": "32,48", "num_masked": 10, "steps": 4, "batch_size": 8,
        "save_every": 2, "device": "cpu", "workers": 0, "log_every": 1, "out": str(out),
    }  # fmt: skip
    return pretrain(resolve(PretrainConfig, flags | more).config, on_event)


def finetuned(data: Path, init: Path, out: Path, **more: Any):
    flags = {
        "recipe": "tiny", "data": [str(data)], "init": str(init), "size": None, "steps": 2, "batch_size": 8,
        "device": "cpu", "workers": 0, "log_every": 1, "out": str(out),
    }  # fmt: skip
    return finetune(resolve(FinetuneConfig, flags | more).config)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, labelled_folder, tokenizer_run) -> Path:
    """4 steps, checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("wide") / "run"
    events: list[object] = []
    report = pretrained(labelled_folder, run, events.append, tokenizer=str(tokenizer_run))
    assert np.isfinite(report.loss)
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert any("16-pixel images; this grid gives it 16 x 24" in message for message in warnings)
    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, labelled_folder, wide) -> Path:
    run = tmp_path_factory.mktemp("classifier") / "run"
    finetuned(labelled_folder, wide, run)
    return run


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(step_folders(run / "checkpoints")[0] / "model.safetensors")


def test_a_run_of_another_shape_stores_both_sides(wide):
    assert "image_size = [32, 48]" in (wide / "config.toml").read_text().splitlines()
    settings = newest_checkpoint(wide).config
    assert settings["architecture"]["image_size"] == [32, 48]
    assert settings["token_size"] == [16, 24]
    assert newest_weights(wide)["pos_embed"].shape == (1, 1 + 4 * 6, 128)


def test_a_run_of_another_shape_resumed_equals_the_whole_one(tmp_path, wide):
    run = shutil.copytree(wide, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    flags = {"out": str(run), "resume": True, "device": "cpu", "workers": 0}
    assert pretrain(resolve(PretrainConfig, flags).config).step == 4
    for name in ("model.safetensors", "trainer.safetensors"):
        parts = [each / "checkpoints" / "step-0000004" / name for each in (run, wide)]
        assert parts[0].read_bytes() == parts[1].read_bytes(), name


def test_another_shape_is_another_setting_on_resume(wide):
    with pytest.raises(UsageError, match=r"--image-size: the run has \[32, 48\], given is 32\."):
        resolve(PretrainConfig, {"out": str(wide), "resume": True, "image_size": "32"})


def test_own_tokenizer_learns_from_squares_of_the_longer_side(tmp_path, labelled_folder):
    run = tmp_path / "run"
    report = pretrained(
        labelled_folder, run, steps=2, tokenizer="own", tokenizer_recipe="tiny", tokenizer_steps=2, image_size="48x32"
    )
    assert report.step == 2
    tokenizer = open_tokenizer(str(run / "tokenizer"))
    assert tokenizer.size == 6 * tokenizer.model.downsample
    factor = tokenizer.model.downsample
    assert newest_checkpoint(run).config["token_size"] == [6 * factor, 4 * factor]


def test_shared_bias_of_another_shape_is_trained_and_handed_to_every_block(tmp_path, labelled_folder, tokenizer_run):
    """Row of (query, key) by hand: (dh + H - 1)(2W - 1) + (dw + W - 1), d = query - key, on 4 x 6 patches."""
    pretrained(labelled_folder, tmp_path / "run", steps=2, positions="shared", tokenizer=str(tokenizer_run))
    model, _ = open_masked_image_model(str(tmp_path / "run"))
    bias = model.rel_pos_bias
    assert bias.relative_position_bias_table.shape == (7 * 11 + 3, 4)
    assert bias.relative_position_bias_table.abs().max() > 0
    index = bias.relative_position_index
    assert (index[1, 1], index[1, 2], index[1, 7], index[24, 1]) == (3 * 11 + 5, 3 * 11 + 4, 2 * 11 + 5, 6 * 11 + 10)
    finetuned(labelled_folder, tmp_path / "run", tmp_path / "fine", steps=1, lr=1e-9, min_lr=0.0, warmup_steps=0)
    table = newest_weights(tmp_path / "fine")["blocks.3.attn.relative_position_bias_table"]
    assert torch.allclose(table, bias.relative_position_bias_table, atol=1e-6)


def test_finetuning_keeps_the_shape_or_takes_another(tmp_path, labelled_folder, wide, classifier):
    model, _ = open_classifier(str(classifier))
    assert model.architecture.grid == (4, 6)
    report = finetuned(labelled_folder, wide, tmp_path / "tall", size="40x24")
    assert np.isfinite(report.top1)
    model, _ = open_classifier(report.run)
    assert (model.architecture.image_size, model.architecture.grid) == ((40, 24), (5, 3))
    assert model.pos_embed.shape == (1, 1 + 15, 128)
    assert "- images: 40 x 24 pixels" in (tmp_path / "tall" / "README.md").read_text()


@pytest.mark.parametrize(
    ("flags", "shape"), [([], (32, 48)), (["--size", "48,40"], (48, 40)), (["--size", 32], (32, 32))]
)
def test_eval_and_predict_see_the_centre_of_that_shape(beit, labelled_folder, classifier, flags, shape):
    path = sorted((labelled_folder / "red").iterdir())[0]
    (document,) = beit("predict", classifier, path, *flags, "--device", "cpu").lines
    model, _ = open_classifier(str(classifier), shape)
    image = Image.open(path).convert("RGB")
    box = center_box(*image.size, shape, 0.875, as_timm=shape[0] != shape[1])
    transform = image.resize(shape[::-1], Image.Resampling.BICUBIC, box)
    images = torch.from_numpy(np.asarray(transform).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        scores = model(normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).softmax(dim=1)[0]
    assert [score for _, score in document["top"]] == pytest.approx(
        scores.sort(descending=True).values.tolist(), abs=1e-5
    )
    (metrics,) = beit("eval", classifier, labelled_folder, *flags, "--device", "cpu").lines
    assert metrics["images"] == 24


# attn-map: 100 x 80 as small as covers 48 x 32 is 48 x 38, of which rows 3 to 34 are kept. Back in the image that is y
# from 6.3 to 73.7: a patch is 16.7 pixels wide and 16.8 high.


@pytest.mark.parametrize(
    ("point", "patch"),
    [((0, 6), [0, 0]), ((16, 22), [0, 0]), ((17, 23), [1, 1]), ((50, 40), [2, 3]), ((99, 73), [3, 5])],
)
def test_attn_map_finds_the_patch_of_a_point(beit, picture, wide, tmp_path, point, patch):
    image = picture("a.png", size=(100, 80))
    argv = ["attn-map", image, "--model", wide, "--point", f"{point[0]},{point[1]}", "--device", "cpu"]
    (document,) = beit(*argv, "-o", tmp_path / "map.png").lines
    (entry,) = document["maps"]
    assert (document["grid"], entry["patch"]) == ([4, 6], patch)
    assert np.shape(entry["attention"]) == (4, 6)
    assert np.sum(entry["attention"]) + entry["cls"] == pytest.approx(1, abs=1e-6)
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.width == 2 * 450 + 3 * 16  # 75 pixels a patch


def test_attn_map_refuses_a_point_above_the_part_that_is_seen(beit, picture, wide):
    ended = beit("attn-map", picture("a.png", size=(100, 80)), "--model", wide, "--point", "50,5")
    assert ended.code == 2
    assert "central part" in ended.err
    assert "X from 0 to 99 and Y from 6 to 73" in ended.err


def test_attn_map_at_another_shape(beit, picture, wide, tmp_path):
    """200 x 100 as small as covers 32 x 64 is 128 x 64: x from 75 to 124, 8 x 4 patches of 12.5 pixels."""
    image = picture("a.png", size=(200, 100))
    argv = ["attn-map", image, "--model", wide, "--size", "64x32", "--device", "cpu"]
    (document,) = beit(*argv, "--point", "75,0", "--point", "88,25", "--point", "124,99", "--head", "all").lines
    assert document["grid"] == [8, 4]
    assert [entry["patch"] for entry in document["maps"][::4]] == [[0, 0], [2, 1], [7, 3]]
    assert beit(*argv, "-o", tmp_path / "page.html").code == 0
    assert '"grid":[8,4]' in (tmp_path / "page.html").read_text()


def test_reference_points_lie_at_the_quarters_of_each_side():
    crop = CentralCrop(width=100, height=80, size=(32, 48), grid=(4, 6))
    assert [crop.patch_of(point) for point in crop.reference_points()] == [(0, 1), (0, 4), (3, 1), (3, 4)]
    assert crop.to_picture((50, 40), (480, 320)) == pytest.approx(
        (241.9, (40.5 - 3 * 80 / 38) / (32 * 80 / 38) * 320 - 0.5)
    )


# mask-preview


def test_mask_preview_rebuilds_the_shape_of_the_run(beit, picture, wide, tmp_path):
    image = picture("a.png", size=(100, 80))
    (document,) = beit("mask-preview", image, "--model", wide, "-o", tmp_path / "out.png", "--device", "cpu").lines
    assert (document["grid"], document["num_masked"]) == ([4, 6], 10)
    assert np.shape(document["mask"]) == (4, 6)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width == 4 * 444 + 5 * 16  # original, masked, of its own and of guessed tokens: 74 pixels a patch
        panel = np.asarray(drawn.convert("RGB"))[16 : 16 + 4 * 74]
    transform = image_view(image, (4 * 74, 6 * 74))
    mask = np.array(document["mask"], dtype=bool).repeat(74, axis=0).repeat(74, axis=1)
    assert np.array_equal(panel[:, 16 : 16 + 444], transform)
    assert np.array_equal(panel[:, 32 + 444 : 32 + 888][~mask], transform[~mask])
    assert panel[:, 48 + 888 : 48 + 1332].std() > 0


def image_view(path: Path, size: tuple[int, int]) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, center_box(*image.size, size)))


def test_mask_preview_of_a_grid_shows_the_centre_of_its_shape(beit, picture, tmp_path):
    image = picture("a.png", size=(100, 80))
    flags = ["--grid", "7x2", "--num-masked", 3, "--masking", "random"]
    assert beit("mask-preview", image, *flags, "-o", tmp_path / "out.png").code == 0
    with Image.open(tmp_path / "out.png") as drawn:
        panel = np.asarray(drawn.convert("RGB"))[16 : 16 + 7 * 64, 16 : 16 + 2 * 64]
    assert np.array_equal(panel, image_view(image, (7 * 64, 2 * 64)))


@pytest.mark.parametrize("text", ["32,", "0", "32x48x3", "wide"])
def test_a_wrong_size_names_the_flag_and_a_right_one(beit, labelled_folder, text):
    ended = beit("pretrain", labelled_folder, "--recipe", "tiny", "--image-size", text)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[0].startswith(f"error: --image-size is '{text}'; one side or H,W is needed")
    assert "--image-size 192,256" in ended.err.splitlines()[1]


def test_a_square_is_written_by_its_side(beit, labelled_folder, tokenizer_run):
    argv = ["pretrain", labelled_folder, "--recipe", "tiny", "--num-masked", 6, "--tokenizer", tokenizer_run]
    argv += ["--device", "cpu", "--workers", 0, "--steps", 1, "--dry-run", "--json"]
    for given, said in (("32", "32 x 32 pixels, 4 x 4 patches"), ("32,48", "32 x 48 pixels, 4 x 6 patches")):
        assert said in json.loads(beit(*argv, "--image-size", given).out)["plan"]["images of"]
