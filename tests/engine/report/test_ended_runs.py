"""What a training command leaves at its end: the page, the details of the last measuring, the card's header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.events import Warned
from beitcli.engine.pretrain import pretrain
from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.record import read_record


def header_of(run: Path) -> list[str]:
    """The lines of the card's YAML header."""
    lines = (run / "README.md").read_text().splitlines()
    assert lines[0] == "---"
    return lines[1 : lines.index("---", 1)]


def test_each_training_leaves_its_page(tokenizer_run: Path, pretrained_run: Path, finetuned_run: Path) -> None:
    for run in (tokenizer_run, pretrained_run, finetuned_run):
        page = (run / "report.html").read_text()
        assert page.startswith("<!doctype html>")
        assert '"state":"done"' in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_details_of_a_classifier_agree_with_its_metrics(finetuned_run: Path) -> None:
    details = json.loads((finetuned_run / "evaluation.json").read_text())
    last = json.loads((finetuned_run / "metrics.jsonl").read_text().splitlines()[-1])
    right = sum(count for label, said, count in details["confusion"] if label == said)
    images = sum(count for *_, count in details["confusion"])
    assert (images, right / images) == (last["held_out_images"], last["held_out_top1"])
    assert details["step"] == 4
    assert len(details["worst"]) == images - right
    found = class_tables(read_record(finetuned_run))
    assert sum(row["images"] for row in found["rows"]) == images
    assert [each["probability"] for each in found["worst"]] == sorted(
        (each["probability"] for each in found["worst"]), reverse=True
    )


def test_cards_of_runs_have_the_header_of_model_hubs(pretrained_run: Path, finetuned_run: Path) -> None:
    header = header_of(pretrained_run)
    assert header[:2] == ["library_name: beit", "pipeline_tag: image-feature-extraction"]
    assert {"- masked-image-modeling", 'license: "unknown"', "metrics:", "- accuracy"} <= set(header)
    header = header_of(finetuned_run)
    assert "pipeline_tag: image-classification" in header
    assert {"model-index:", "    - type: accuracy"} <= set(header)


def test_the_card_has_the_verdict_of_the_report(pretrained_run: Path, beit: Any) -> None:
    told = beit("report", pretrained_run, "--json").lines[0]["runs"][0]["verdict"]["text"]
    assert told in (pretrained_run / "README.md").read_text().replace("\\_", "_")


def test_a_page_that_cannot_be_written_is_a_warning(labelled_folder: Path, tmp_path: Path) -> None:
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "limit": 20, "target": "pixels", "previews": 0}
    flags |= {"steps": 1, "batch_size": 4, "workers": 0, "device": "cpu", "data": [str(labelled_folder)]}
    events: list[Any] = []

    def watch(event: Any) -> None:
        events.append(event)
        if not (tmp_path / "run" / "report.html").exists():
            (tmp_path / "run" / "report.html").mkdir(parents=True)

    report = pretrain(resolve(PretrainConfig, flags | {"out": str(tmp_path / "run")}).config, lambda event: None)
    assert report.step == 1
    (tmp_path / "run" / "report.html").unlink()
    again = {"out": str(tmp_path / "run"), "resume": True, "workers": 0}
    assert pretrain(resolve(PretrainConfig, again).config, watch).step == 1
    assert any("report.html was not written" in event.message for event in events if isinstance(event, Warned))
