"""Annotations that do not fit, met by the commands: exit codes, messages, and what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beitcli.engine.events import Event, Tabulated, Warned
from beitcli.engine.finetune import finetune
from beitcli.errors import DataError
from tests.helpers.coco_folder import changed, save_rectangles
from tests.helpers.detection_runs import command_of, config_of


@pytest.fixture
def copied(rectangles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rectangles, tmp_path / "copied"))


def spoil(file: Path, count: int) -> None:
    def outside(document: dict[str, Any]) -> None:
        seen: set[int] = set()
        for annotation in document["annotations"]:
            if annotation["image_id"] not in seen and len(seen) < count:
                seen.add(annotation["image_id"])
                annotation["bbox"] = [40, 30, 20, 20]

    changed(file, outside)


def test_boxes_outside_the_image_stop_the_run_past_max_bad_and_are_left_out_below_it(beit, copied, tmp_path):
    spoil(copied / "annotations" / "instances_train.json", 3)
    run = tmp_path / "run"
    refused = beit(*command_of(copied, run))
    assert refused.code == 3, refused.err
    assert "3 of 12 images cannot be read, 1 are allowed" in refused.err
    assert "its box [40, 30, 20, 20] reaches beyond the image of 48 x 40 pixels" in refused.err
    assert not run.exists()
    allowed = beit(*command_of(copied, run), "--max-bad", 0.3)
    assert allowed.code == 0, allowed.err
    told = [json.loads(line) for line in (run / "bad-images.jsonl").read_text().splitlines()]
    assert [Path(record["path"]).stem for record in told] == ["00", "01", "02"]
    assert all("reaches beyond" in record["error"] for record in told)


def test_empty_annotations_and_damaged_ones_end_with_3_and_their_name(beit, copied, detector_run, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    whole = file.read_text()
    changed(file, lambda document: document.update(annotations=[]))
    empty = beit(*command_of(copied, tmp_path / "run"))
    assert (empty.code, "None of 12 training images" in empty.err) == (3, True)
    file.write_text(file.read_text()[:200])
    damaged = beit(*command_of(copied, tmp_path / "run"))
    assert (damaged.code, f"'{file}' holds no annotations" in damaged.err) == (3, True)
    assert not (tmp_path / "run").exists()
    val = copied / "annotations" / "instances_val.json"
    changed(val, lambda document: document.update(annotations=[]))
    measured = beit("eval", detector_run, copied)
    assert (measured.code, "None of 5 images" in measured.err) == (3, True)
    changed(val, lambda document: document["categories"][0].update(name="green"))
    unknown = beit("eval", detector_run, copied)
    assert (unknown.code, "namely: 'green'. It knows 2: " in unknown.err) == (3, True)
    file.write_text(whole)
    learnt = beit(*command_of(copied, tmp_path / "run"))
    assert (learnt.code, "The validation split has 1 class that DATA does not have, namely: 'green'" in learnt.err) == (
        3,
        True,
    )


def test_eval_counts_what_cannot_be_used(beit, copied, detector_run):
    spoil(copied / "annotations" / "instances_val.json", 1)
    (copied / "val" / "02.png").write_bytes(b"no image")
    refused = beit("eval", detector_run, copied)
    assert (refused.code, "2 of 5 images cannot be read" in refused.err) == (3, True)
    allowed = beit("eval", detector_run, copied, "--max-bad", 0.5)
    assert (allowed.lines[0]["images"], allowed.lines[0]["bad"]) == (3, 2)


def test_image_that_turns_out_bad_while_training_is_replaced_and_named(copied, tmp_path):
    Image.new("RGB", (30, 20)).save(copied / "train" / "03.png")
    finetune(config_of(copied, steps=4, out=str(tmp_path / "run")))
    (told,) = [json.loads(line) for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert told["error"] == "it is 30 x 20 pixels, its annotations say 48 x 40"


def test_classes_and_their_boxes_are_told_and_empty_ones_warned_of(copied, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    changed(file, lambda document: document["categories"].append({"id": 1, "name": "green"}))
    events: list[Event] = []
    finetune(config_of(copied, out=str(tmp_path / "run"), steps=1), events.append)
    (table,) = [event for event in events if isinstance(event, Tabulated)]
    boxes = json.loads(file.read_text())["annotations"]
    assert [row[0] for row in table.rows] == ["green", "blue", "red"]
    assert [row[1] for row in table.rows] == [0, *(sum(b["category_id"] == c for b in boxes) for c in (3, 7))]
    assert any("1 of 3 classes have no box" in event.message for event in events if isinstance(event, Warned))


def test_without_a_validation_split_some_images_are_held_out(tmp_path):
    file = save_rectangles(tmp_path, "train", 20, seed=0)
    data = tmp_path / "data"
    (tmp_path / "train").rename(tmp_path / "images")
    data.mkdir()
    (tmp_path / "images").rename(data / "images")
    file.rename(data / "annotations.json")
    report = finetune(config_of(data, steps=1, out=str(tmp_path / "run")))
    assert (report.measured_on, report.images) == ("4 held-out images", 4)


def test_no_box_at_all_is_refused_by_its_own_words(copied):
    changed(copied / "annotations" / "instances_train.json", lambda d: [a.update(iscrowd=1) for a in d["annotations"]])
    with pytest.raises(DataError, match=r"has a box") as error:
        finetune(config_of(copied))
    assert "crowds" in error.value.hint


def test_annotations_without_outlines_are_of_no_use_to_mask_rcnn(beit, copied, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    changed(file, lambda document: [each.pop("segmentation") for each in document["annotations"]])
    ended = beit(*command_of(copied, tmp_path / "run"), "--head", "mask-rcnn")
    assert (ended.code, "it has no segmentation" in ended.err) == (3, True)
    assert beit(*command_of(copied, tmp_path / "run")).code == 0
