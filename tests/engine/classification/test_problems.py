"""Multi-label classifiers and regressions of transformers: outputs mean what `problem_type` says, exported too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from beitcli.errors import StorageError
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import hf_classifier, save_released, timm_small

PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 64, "width": 64},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def stated(folder: Path, problem: str | None, **settings: object) -> Path:
    hf_classifier(folder, problem_type=problem, **settings)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@torch.no_grad()
def logits_of(folder: Path, path: Path) -> torch.Tensor:
    """(classes,) by transformers' own model and processor."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.BeitForImageClassification.from_pretrained(folder).eval()
    with Image.open(path) as image:
        return model(**processor(image.convert("RGB"), return_tensors="pt")).logits[0]


@pytest.mark.parametrize("to", [None, "hf", "timm", "official"])
def test_a_multi_label_classifier_gives_a_probability_of_each_label(beit, tmp_path, picture, to):
    model = stated(tmp_path / "theirs", "multi_label_classification")
    path = picture("a.png", size=(90, 60))
    expected = logits_of(model, path).sigmoid()
    if to is not None:
        assert beit("export", model, "--to", to, "-o", tmp_path / "out").code == 0
        model = tmp_path / "out"
    cut = float(expected.sort().values[1])
    document = beit("predict", model, path, "--json", "--score-threshold", cut - 1e-3).lines[0]
    names = ["blue", "green", "red"]
    assert dict(document["top"]) == pytest.approx(dict(zip(names, expected.tolist(), strict=True)), abs=2e-3)
    assert {name for name, _ in document["labels"]} == {n for n, p in zip(names, expected, strict=True) if p >= cut}
    assert beit("predict", model, path, "--json", "--score-threshold", 1.0).lines[0]["labels"] == []


@pytest.mark.parametrize("to", [None, "hf", "timm", "official"])
@pytest.mark.parametrize("problem", ["regression", None])
def test_a_regression_gives_the_number_itself(beit, tmp_path, picture, to, problem):
    model = stated(tmp_path / "theirs", problem, id2label={0: "age"}, num_labels=1)
    path = picture("a.png", size=(90, 60))
    expected = float(logits_of(model, path)[0])
    if to is not None:
        assert beit("export", model, "--to", to, "-o", tmp_path / "out").code == 0
        model = tmp_path / "out"
    document = beit("predict", model, path, "--json").lines[0]
    assert document["score"] == pytest.approx(expected, abs=2e-2)
    assert document["label"] == "age"


def test_the_export_for_transformers_states_the_problem(beit, tmp_path):
    stated(tmp_path / "theirs", "multi_label_classification")
    assert beit("export", tmp_path / "theirs", "--to", "hf", "-o", tmp_path / "out").code == 0
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == "multi_label_classification"
    assert json.loads(beit("inspect", tmp_path / "out", "--json").out)["problem"] == "multi-label"


def test_a_numbers_order_is_that_of_the_outputs_and_all_are_told(beit, tmp_path, picture):
    names = {number: f"n{number}" for number in range(7)}
    stated(tmp_path / "theirs", "regression", id2label=names)
    document = beit("predict", tmp_path / "theirs", picture("a.png"), "--json").lines[0]
    assert [name for name, _ in document["top"]] == list(names.values())


def test_an_unknown_problem_is_refused_with_its_value(tmp_path):
    stated(tmp_path, None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "clustering"}))
    with pytest.raises(StorageError, match="clustering"):
        open_model(str(tmp_path))


def test_one_output_without_a_statement_is_a_number(tmp_path):
    path = save_released(timm_small(tmp_path / "timm", num_classes=1), tmp_path / "a.pth")
    opened = open_model(str(path))
    assert opened.problem == "regression"
    assert any("regression" in each for each in opened.assumed)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_eval_on_class_folders_refuses_what_has_no_one_class(beit, tmp_path, labelled_folder, problem):
    stated(tmp_path / "theirs", problem)
    ended = beit("eval", tmp_path / "theirs", labelled_folder)
    assert ended.code == 3
    assert "label" in ended.err or "number" in ended.err
