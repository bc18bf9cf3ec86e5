"""The model card of an export: a YAML header that parses, whatever the names hold, and what is known in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from beitcli.engine.export_card import export_card
from beitcli.engine.report.front_matter import yaml_text
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import hf_classifier, hf_masked, timm_small


def card(beit, model: Path, to: str, output: Path) -> tuple[dict[str, Any], str]:
    """Exports, and returns the YAML header and the text of the card."""
    ended = beit("export", model, "--to", to, "-o", output)
    assert ended.code == 0, ended.err
    text = (output / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    _, header, body = text.split("\n---\n", 1)[0], text[4:].split("\n---\n", 1)[0], text.split("\n---\n", 1)[1]
    return yaml.safe_load(header), body


@pytest.mark.parametrize(("to", "library"), [("hf", "transformers"), ("timm", "timm"), ("official", "pytorch")])
def test_the_card_of_a_run_has_library_task_and_metrics(beit, tmp_path, finetuned_run, to, library):
    header, body = card(beit, finetuned_run, to, tmp_path / "out")
    assert (header["library_name"], header["pipeline_tag"]) == (library, "image-classification")
    assert {"beit", "vision", "image-classification"} <= set(header["tags"])
    assert "license" not in header
    result = header["model-index"][0]["results"][0]
    records = [json.loads(line) for line in (finetuned_run / "metrics.jsonl").read_text().splitlines()]
    assert result["metrics"][0] == {"type": "accuracy", "name": "top1", "value": records[-1]["held_out_top1"]}
    assert header["metrics"] == ["accuracy"]
    assert result["dataset"]["name"] == "labelled0"
    assert "32 x 32 pixels, center, 0.875" in body


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_the_card_of_a_pretrained_model_says_what_it_is(beit, tmp_path, to):
    hf_masked(tmp_path / "theirs", use_shared_relative_position_bias=True)
    header, _ = card(beit, tmp_path / "theirs", to, tmp_path / "out")
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert "masked-image-modeling" in header["tags"]
    assert "model-index" not in header


def test_the_licence_is_that_of_the_original(beit, tmp_path):
    timm_small(tmp_path / "timm")
    settings = json.loads((tmp_path / "timm" / "config.json").read_text())
    settings["pretrained_cfg"]["license"] = "cc-by: 'nc'\n- x"
    (tmp_path / "timm" / "config.json").write_text(json.dumps(settings))
    assert card(beit, tmp_path / "timm", "hf", tmp_path / "a")[0]["license"] == "cc-by: 'nc'\n- x"
    hf_classifier(tmp_path / "hf")
    (tmp_path / "hf" / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\n# A model\nlicense: mit\n")
    assert card(beit, tmp_path / "hf", "timm", tmp_path / "b")[0]["license"] == "apache-2.0"


def test_a_folder_with_signs_of_yaml_and_markdown_makes_a_card_that_reads(beit, tmp_path):
    name = "a: [b] | `c` <script> #d"
    hf_classifier(tmp_path / name)
    header, body = card(beit, tmp_path / name, "hf", tmp_path / "out")
    assert header["library_name"] == "transformers"
    assert "<script>" not in body
    assert r"\`c\`" in body


@pytest.mark.parametrize(
    "text", ["plain", 'a "b" \\ c', "yes", "- x: y\n---\n", "\x00\x7f\x85\u2028\ufeff", "\U0001f600 é", "{a}: &b *c !d"]
)
def test_yaml_text_reads_back_as_it_was(text):
    assert yaml.safe_load(f"name: {yaml_text(text)}") == {"name": text}


def test_yaml_text_of_bytes_that_are_no_text_is_a_replacement_character():
    assert yaml.safe_load(yaml_text("a\udcff")) == "a�"


def test_the_base_model_is_the_repository_without_revision_and_part(tmp_path):
    hf_classifier(tmp_path / "hf")
    handle = replace(open_model(str(tmp_path / "hf")), reference="hf://owner/name@main#model_ema")
    header = yaml.safe_load(export_card("timm", handle, "BeitForImageClassification", "").split("\n---\n")[0][4:])
    assert header["base_model"] == "owner/name"


def test_the_licence_that_a_user_gave_a_run_is_kept(beit, tmp_path, finetuned_run):
    run = tmp_path / "run"
    shutil.copytree(finetuned_run, run)
    card_of_run = (run / "README.md").read_text(encoding="utf-8")
    (run / "README.md").write_text(f"---\nlicense: cc-by-4.0\n---\n{card_of_run}", encoding="utf-8")
    assert card(beit, run, "timm", tmp_path / "out")[0]["license"] == "cc-by-4.0"
