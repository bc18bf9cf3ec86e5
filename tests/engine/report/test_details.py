"""The details of a segmenter's last measuring, by hand."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.data.annotations.label_maps import IGNORED, LabelMapping
from beitcli.data.sources.segmentation import SegmentationSource, open_segmentation
from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.record import RunRecord
from beitcli.engine.segmentation.metrics import confusion
from beitcli.engine.segmentation.mistakes import Mistakes, in_order, segmentation_details
from beitcli.pictures.palette import class_colours

CLASSES = ["sky", "tree", "cat"]


def opened(folder: Path, number: int, *, rule: LabelMapping | None = None) -> SegmentationSource:
    """Black images of 100 x 40 with masks."""
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (folder / kind).mkdir(parents=True)
        for n in range(number):
            Image.new(mode, (100, 40), 0).save(folder / kind / f"{n}.png")
    return open_segmentation([str(folder)], rule or LabelMapping(classes=3))


def scene(labelled: int, predicted: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of one class, without one in the last 10 columns, and a prediction that is right in some columns."""
    labels = torch.full((40, 100), labelled)
    labels[:, 90:] = IGNORED
    guess = torch.full((40, 100), predicted)
    guess[:, :right] = labelled
    return labels, guess


def mistakes_of(scenes: list[tuple[int, int, int]]) -> Mistakes:
    mistakes = Mistakes()
    for index, each in enumerate(scenes):
        labels, guess = scene(*each)
        mistakes.add(index, confusion(guess, labels, 3), labels, guess)
    return mistakes


def pixels_of(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def tables(details: dict[str, Any]) -> dict[str, Any]:
    return class_tables(RunRecord(Path("run"), "finetune", "done", 1, 0.0, {}, [], [], 0, "", details))


def test_the_worst_of_each_confusion_comes_before_the_second_worst() -> None:
    mistakes = mistakes_of([(0, 1, 10), (0, 1, 11), (0, 1, 9), (1, 0, 60), (1, 2, 50), (2, 2, 50)])
    assert [each.index for each in in_order(mistakes.worst)] == [2, 4, 3, 0, 1]
    worst = in_order(mistakes.worst)[0]
    assert (worst.right, worst.wrong, worst.confused) == (0.1, 0.9, (0, 1))


def test_as_many_of_the_worst_are_kept_as_are_needed() -> None:
    generator = np.random.default_rng(0)
    scenes = [(int(t), int((t + 1 + p) % 3), int(r)) for t, p, r in generator.integers((3, 2, 89), size=(300, 3))]
    kept = mistakes_of(scenes)
    apart = [mistakes_of([each]).worst[0] for each in scenes]
    due = sorted(range(300), key=lambda n: (apart[n].right, n))
    assert len(kept.worst) < 100
    seen: Counter[tuple[int, int]] = Counter()
    rank = {}
    for n in due:
        rank[n] = seen[apart[n].confused]
        seen[apart[n].confused] += 1
    first = [each.index for each in in_order(kept.worst)][:24]
    assert first == sorted(due, key=lambda n: (rank[n], apart[n].right, n))[:24]


def test_details_of_a_segmenter_are_pixels_of_classes_and_of_confusions() -> None:
    counts = np.array([[50, 10, 0], [20, 15, 5], [0, 0, 0]])
    source = open_segmentation(["sample"], LabelMapping(classes=3))
    details = segmentation_details(CLASSES, counts, [], source)
    assert details["confusion"] == [[1, 0, 20], [0, 1, 10], [1, 2, 5]]
    found = tables(details)
    assert found["matrix"] == {"classes": CLASSES, "counts": counts.tolist(), "of": "pixels"}
    rows = {row["class"]: row for row in found["rows"]}
    assert rows["sky"]["value"] == pytest.approx(50 / 80)
    assert rows["tree"]["value"] == pytest.approx(15 / 50)
    assert (rows["sky"]["share"], rows["tree"]["recall"], rows["cat"]["recall"]) == (0.6, 0.375, None)
    run = RunRecord(Path("run"), "finetune", "done", 1, 0.0, {}, [], [], 0, "", details)
    assert (run.measured.commonest, run.measured.labelled, run.measured.classes) == (0.6, 2, 3)
    many = segmentation_details([str(n) for n in range(31)], np.eye(31, dtype=int), [], source)
    assert "matrix" not in many
    assert tables(many)["matrix"] is None


def test_the_worst_images_have_image_labels_and_prediction_in_the_colours_of_the_classes(tmp_path: Path) -> None:
    source = opened(tmp_path, 2)
    mistakes = mistakes_of([(0, 1, 45), (1, 0, 80)])
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    details = segmentation_details(CLASSES, np.eye(3, dtype=int), mistakes.worst, source)
    found = tables(details)
    (shown,) = found["worst"]
    assert Path(shown["path"]).name == "0.png"
    assert (shown["pixel_accuracy"], shown["class"], shown["predicted"], shown["confused"]) == (0.5, "sky", "tree", 0.5)
    half = [np.rint(0.5 * colour) for colour in class_colours()[:2].astype(float)]
    image, labelled, predicted = (pixels_of(shown[name]) for name in ("image", "labelled", "picture"))
    assert image.max() < 4
    assert np.abs(labelled[20, 20] - half[0]).max() < 12
    assert np.abs(labelled[20, 70] - half[0]).max() < 12
    assert np.abs(predicted[20, 20] - half[0]).max() < 12
    assert np.abs(predicted[20, 70] - half[1]).max() < 12
    assert np.ptp(labelled[10:30, 93:97].reshape(-1, 3), axis=0).max() > 40  # hatched
    hexes = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours()[[0, 1, IGNORED]].tolist()]
    assert found["legend"] == [
        {"class": "sky", "colour": hexes[0], "hatched": False},
        {"class": "tree", "colour": hexes[1], "hatched": False},
        {"class": "no class", "colour": hexes[2], "hatched": True},
    ]
    assert "confusion is the same" in found["worst_note"]


def test_a_legend_has_the_colours_that_predict_draws(tmp_path: Path) -> None:
    shifted = opened(tmp_path / "shifted", 1, rule=LabelMapping(classes=3, reduce_zero_label=True))
    worst = mistakes_of([(0, 1, 45)]).worst
    legend = segmentation_details(CLASSES, np.eye(3, dtype=int), worst, shifted)["legend"]
    assert legend[0]["colour"] == "#{:02x}{:02x}{:02x}".format(*class_colours()[1].tolist())
    plain = opened(tmp_path / "plain", 1)
    legend = segmentation_details(["background", "a", "b"], np.eye(3, dtype=int), worst, plain)["legend"]
    assert legend[0] == {"class": "background", "colour": None}


@pytest.mark.parametrize("matrix", [[[1]], [[1, 2], [3]], [[1, -1], [0, 1]], "x", [["a", 1], [1, 1]]])
def test_a_strange_matrix_leaves_the_tables_out(matrix: Any) -> None:
    details = {"task": "segment", "classes": ["a", "b"], "labelled": [2, 1], "predicted": [2, 1], "hits": [1, 1]}
    assert tables(details | {"confusion": []})["matrix"] is None
    assert "rows" not in tables(details | {"confusion": [], "matrix": matrix})


def test_a_colour_that_is_none_does_not_reach_the_page() -> None:
    url = "data:image/jpeg;base64,AAAA"
    details = {"task": "segment", "classes": ["a"], "labelled": [2], "predicted": [2], "hits": [1], "confusion": []}
    details |= {"worst": [{"path": "a", "picture": url, "image": "https://example.org/x.jpg", "confused": 0.5}]}
    found = tables(details | {"legend": [{"class": "a", "colour": "red;background:url(x)"}]})
    assert found["legend"] == [{"class": "a", "colour": None, "hatched": False}]
    assert "image" not in found["worst"][0]
