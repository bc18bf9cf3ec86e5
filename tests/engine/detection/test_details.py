"""What evaluation.json says of a detector, counted by hand on three images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.sources.detection import DetectionSource
from beitcli.data.sources.open_data import open_data
from beitcli.engine.detection.details import detection_details, match
from beitcli.engine.detection.metrics import Detections, average_precision
from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.record import RunRecord

Box = tuple[float, float, float, float]
CAT, DOG = (10.0, 10.0, 40.0, 40.0), (50.0, 20.0, 90.0, 60.0)


def marked(*objects: tuple[Box, int], crowd: int | None = None) -> BoxLabels:
    boxes = np.array([box for box, _ in objects], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label in objects], np.int64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    return BoxLabels(boxes, labels, np.arange(len(labels)) == crowd, areas, (80, 100))


def found(*guesses: tuple[Box, int, float]) -> Detections:
    boxes = np.array([box for box, *_ in guesses], np.float32).reshape(-1, 4)
    labels, scores = np.array([each[1] for each in guesses], np.int64), np.array([each[2] for each in guesses])
    return Detections(boxes, labels, scores.astype(np.float32))


@pytest.fixture
def source(tmp_path: Path) -> DetectionSource:
    for number in range(4):
        Image.new("RGB", (100, 80), (40 * number, 90, 120)).save(tmp_path / f"{number}.png")
    every = [
        marked((CAT, 0), (DOG, 1)),  # both found
        marked((CAT, 0), (DOG, 1)),  # the dog is called a cat
        marked((CAT, 0), (DOG, 1)),  # nothing found
        marked(),  # and nothing there
    ]
    return DetectionSource(open_data([str(tmp_path)]), every, ("cat", "dog", "cow"))


GUESSES = [
    (0, found((CAT, 0, 0.9), (DOG, 1, 0.6))),
    (1, found((CAT, 0, 0.9), (DOG, 0, 0.8), (DOG, 1, 0.4))),  # the last is below 50%
    (2, found()),
    (3, found()),
]


def test_classes_are_counted_and_the_worst_images_come_first(source: DetectionSource, tmp_path: Path) -> None:
    metrics = average_precision([source.boxes(index) for index, _ in GUESSES], [each for _, each in GUESSES], 3)
    details = detection_details(source.names, metrics, GUESSES, source)
    assert (details["objects"], details["predicted"], details["hits"]) == ([3, 3, 0], [3, 1, 0], [2, 1, 0])
    worst = details["worst"]
    told = [(Path(each["path"]).name, each["objects"], each["hits"], each["wrong"]) for each in worst]
    assert told == [("2.png", 2, 0, 0), ("1.png", 2, 1, 1)]
    assert all(each[name].startswith("data:image/jpeg;base64,") for each in worst for name in ("labelled", "picture"))
    assert worst[0]["labelled"] != worst[0]["picture"]

    tables = class_tables(RunRecord(tmp_path, "finetune", "done", 1, 0.0, {}, [], [], 0, "", details))
    rows = {row["class"]: row for row in tables["rows"]}
    assert rows.keys() == {"cat", "dog"}  # there are no cows, and none is said to be there
    assert (rows["cat"]["recall"], rows["cat"]["precision"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (rows["dog"]["recall"], rows["dog"]["precision"]) == (pytest.approx(1 / 3), 1)
    assert [rows[name]["value"] for name in ("cat", "dog")] == list(metrics.of_class[:2])
    assert "a score of 50% and more" in tables["note"]
    assert len(tables["worst"]) == 2


def test_a_class_that_is_only_predicted_has_no_average_precision(source: DetectionSource, tmp_path: Path) -> None:
    guesses = [(3, found((CAT, 2, 0.9)))]
    metrics = average_precision([source.boxes(3)], [guesses[0][1]], 3)
    details = detection_details(source.names, metrics, guesses, source)
    (row,) = class_tables(RunRecord(tmp_path, "finetune", "done", 1, 0.0, {}, [], [], 0, "", details))["rows"]
    assert row == {"class": "cow", "objects": 0, "value": None, "precision": 0.0, "recall": None}


def test_each_object_is_found_once_and_a_crowd_counts_for_nothing() -> None:
    truth = marked((CAT, 0), (DOG, 0), crowd=1)
    right, ignored = match(truth, found((CAT, 0, 0.9), (CAT, 0, 0.8), ((55.0, 25, 65, 35), 0, 0.7), (DOG, 1, 0.6)))
    assert (right.tolist(), ignored.tolist()) == ([True, False, False, False], [False, False, True, False])
    assert [each.tolist() for each in match(marked(), found((CAT, 0, 0.9)))] == [[False], [False]]
    near = (10.0, 10.0, 40.0, 24.0)  # 14 of 30 rows: an IoU of 0.47
    assert not match(truth, found((near, 0, 0.9)))[0].any()
