"""`Model`: embed, predict and attention of images in memory give the numbers of the command line, in every form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beitcli
from beitcli.config.resolve import resolve
from beitcli.engine.finetune import finetune
from tests.helpers.scenes import IGNORE


@pytest.fixture(scope="module")
def files(labelled_folder: Path) -> list[Path]:
    return sorted(labelled_folder.rglob("*.png"))[:5]


@pytest.fixture(scope="module")
def pretrained(pretrained_run: Path) -> beitcli.Model:
    return beitcli.load_model(pretrained_run, progress=False)


@pytest.fixture(scope="module")
def classifier(finetuned_run: Path) -> beitcli.Model:
    return beitcli.load_model(finetuned_run, progress=False)


def arrays(files: list[Path]) -> list[np.ndarray]:
    return [np.array(Image.open(file).convert("RGB")) for file in files]


FORMS: dict[str, Callable[[list[Path]], Any]] = {
    "paths": lambda files: files,
    "text": lambda files: [str(file) for file in files],
    "pillow": lambda files: [Image.open(file) for file in files],
    "array": lambda files: np.stack(arrays(files)),
    "arrays of channels first": lambda files: [each.transpose(2, 0, 1) for each in arrays(files)],
    "floats": lambda files: [each / np.float32(255) for each in arrays(files)],
    "tensor": lambda files: torch.from_numpy(np.stack(arrays(files))).permute(0, 3, 1, 2),
    "tensors of floats": lambda files: [torch.from_numpy(each).permute(2, 0, 1) / 255 for each in arrays(files)],
    "mixed": lambda files: (str(files[0]), Image.open(files[1]), torch.from_numpy(np.stack(arrays(files)[2:]))),
}


@pytest.mark.parametrize("form", FORMS)
def test_embed_takes_images_in_every_form(
    beit: Callable, pretrained: beitcli.Model, files: list[Path], form: str
) -> None:
    told = beit("embed", pretrained.reference, *files, "--workers", 0).lines
    features = pretrained.embed(FORMS[form](files))
    assert (features.shape, features.dtype) == ((5, 128), np.float32)
    assert np.allclose(features, [each["features"] for each in told], atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"layer": 2, "pool": "cls+mean"}, {"pool": "none", "feature_norm": False}], ids=str
)
def test_embed_has_the_settings_of_the_command_line(
    beit: Callable, classifier: beitcli.Model, files: list[Path], settings: dict[str, Any]
) -> None:
    words = ["--layer", settings.get("layer", -1), "--pool", settings["pool"]]
    words += [] if settings.get("feature_norm", True) else ["--no-feature-norm"]
    told = beit("embed", classifier.reference, *files, *words, "--workers", 0).lines
    features = classifier.embed(files, batch_size=2, **settings)
    assert np.allclose(features, [each["features"] for each in told], atol=1e-5)


def test_predict_equals_the_command_line(beit: Callable, classifier: beitcli.Model, files: list[Path]) -> None:
    told = beit("predict", classifier.reference, *files, "--top", 2, "--workers", 0).lines
    assert classifier.predict(files, top=2) == told
    in_memory = classifier.predict(np.stack(arrays(files)), top=2)
    assert [each.pop("path") for each in in_memory] == [f"image-{n}" for n in range(5)]
    assert in_memory == [{name: each[name] for name in ("label", "score", "top")} for each in told]
    assert classifier.classes == ("blue", "green", "red")


def test_attention_equals_the_command_line(beit: Callable, pretrained: beitcli.Model, files: list[Path]) -> None:
    line = ["attn-map", files[0], "--model", pretrained.reference]
    assert pretrained.attention(files[0]) == beit(*line).lines[0]
    (told,) = beit(*line, "--point", "20,11", "--point", "3,30", "--layer", 1, "--head", 2).lines
    assert pretrained.attention(files[0], points=[(20, 11), (3, 30)], layer=1, head=2) == told
    assert pretrained.attention(Image.open(files[0]), head="all")["maps"][1]["head"] == 1


def test_predict_of_a_segmenter_returns_the_mask_of_its_file(beit: Callable, scenes: Path, tmp_path: Path) -> None:
    flags = {"data": [str(scenes)], "out": str(tmp_path / "run"), "init": "random", "size": 32, "steps": 1}
    flags |= {"batch_size": 2, "classes": str(scenes / "names.txt"), "ignore_index": IGNORE}
    finetune(resolve(beitcli.FinetuneConfig, flags | {"recipe": "tiny-segment", "device": "cpu", "workers": 0}).config)
    picture = sorted((scenes / "val" / "images").iterdir())[0]
    (told,) = beit("predict", tmp_path / "run", picture, "-o", tmp_path / "masks", "--workers", 0).lines
    (document,) = beitcli.load_model(tmp_path / "run", progress=False).predict(picture)
    assert np.array_equal(document["mask"], np.asarray(Image.open(told["output"])))
    assert document["classes"] == told["classes"]


def test_model_is_called_and_asked_as_its_network(classifier: beitcli.Model) -> None:
    images = torch.zeros(2, 3, *classifier.architecture.image_size)
    assert torch.equal(classifier(images), classifier.network(images))
    assert sum(1 for _ in classifier.parameters()) == sum(1 for _ in classifier.network.parameters())
    assert not classifier.eval().training
    assert classifier.normalization[0] == pytest.approx((0.485, 0.456, 0.406))
    assert classifier.to("cpu") is classifier
    assert torch.equal(copy.deepcopy(classifier)(images), classifier(images))
    with pytest.raises(AttributeError):
        classifier.no_such_thing  # noqa: B018


def test_a_pretrained_model_is_called_with_and_without_a_mask(pretrained: beitcli.Model) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    every = pretrained(images)
    assert every.shape == (2 * 16, 16)  # 4 x 4 patches, 16 codes
    shown = pretrained.network.hidden_features(images, torch.zeros(2, 16, dtype=torch.bool))
    assert torch.equal(every, pretrained.network.token_head(shown.flatten(0, 1)))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = mask[1, 5:7] = True
    assert pretrained(images, mask).shape == (3, 16)
    assert not torch.equal(pretrained(images, mask), every[mask.flatten()])  # the mask token is in their places


def test_what_the_networks_return_is_as_the_page_says(
    beit: Callable, pretrained: beitcli.Model, classifier: beitcli.Model, scenes: Path, tmp_path: Path
) -> None:
    images = torch.zeros(2, 3, 32, 32)
    assert classifier(images).shape == (2, 3)
    assert beitcli.load_model(f"{pretrained.reference}@random", progress=False)(images).shape == (2, 128)
    recipe = ["--recipe", "tiny-segment", "--classes", scenes / "names.txt", "--ignore-index", IGNORE]
    small = ["--init", "random", "--size", 32, "--steps", 1, "--batch-size", 2, "--workers", 0, "--device", "cpu"]
    beit("finetune", scenes, *recipe, *small, "--out", tmp_path / "segmenter")
    (logits,) = beitcli.load_model(tmp_path / "segmenter", progress=False)(images)
    assert logits.shape[:2] == (2, 3)
    assert logits.ndim == 4


def test_images_of_other_modes_are_converted_as_files_are(pretrained: beitcli.Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (40, 36, 4), dtype=np.uint8))
    palette = alpha.convert("RGB").quantize(16)
    for number, image in enumerate((gray, alpha, palette)):
        image.save(tmp_path / f"{number}.png")
        assert np.array_equal(pretrained.embed(image), pretrained.embed(tmp_path / f"{number}.png"))
    turned = gray.convert("RGB")
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert np.array_equal(
        pretrained.embed(Image.open(tmp_path / "turned.jpg")), pretrained.embed(tmp_path / "turned.jpg")
    )
    assert np.array_equal(pretrained.embed(np.asarray(gray)), pretrained.embed(gray))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "There is no image."),
        (3, "int is no image."),
        (np.zeros((5, 7, 9), np.uint8), r"shape \(5, 7, 9\) is no image"),
        (np.full((8, 8, 3), 2.5), "neither uint8 nor in"),
        (np.full((8, 8, 3), np.nan), "neither uint8 nor in"),
        (np.zeros((8, 8, 3), np.int64), "neither uint8 nor in"),
    ],
    ids=["nothing", "a number", "no channels", "too large", "nan", "int64"],
)
def test_what_is_no_image_is_refused(pretrained: beitcli.Model, images: Any, said: str) -> None:
    with pytest.raises(beitcli.UsageError, match=said):
        pretrained.embed(images)


def test_an_unreadable_file_and_a_folder_are_errors(
    pretrained: beitcli.Model, classifier: beitcli.Model, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for call in (pretrained.embed, classifier.predict, pretrained.attention):
        with pytest.raises(beitcli.DataError, match=r"bad\.png' cannot be read"):
            call(tmp_path / "bad.png")
        with pytest.raises(beitcli.UsageError, match="is a folder"):
            call(tmp_path)


def test_a_pretrained_model_predicts_nothing(pretrained: beitcli.Model, files: list[Path]) -> None:
    with pytest.raises(beitcli.StorageError, match="is a pretrained model, not finetuned yet"):
        pretrained.predict(files)
    with pytest.raises(beitcli.UsageError, match="pool is 'max'"):
        pretrained.embed(files, pool="max")  # type: ignore[arg-type]
