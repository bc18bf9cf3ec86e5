"""COCO annotations as labelling programs export them: their layouts, ids, names of files, and categories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beitcli.data.sources.detection import DetectionSource, open_detection
from beitcli.data.sources.splits import has_train_and_val
from beitcli.errors import DataError
from tests.helpers.coco_folder import NAMES, changed, save_rectangles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """annotations.json beside images/: four images, of which the last has no box."""
    file = save_rectangles(tmp_path, "images", 4, seed=0)
    file.rename(tmp_path / "annotations.json")
    file.parent.rmdir()
    return tmp_path


def same(one: DetectionSource, other: DetectionSource) -> None:
    assert (len(one), one.names, one.bad) == (len(other), other.names, ())
    for index in range(len(one)):
        pixels, found = one.pixels_and_labels(index)
        expected_pixels, expected = other.pixels_and_labels(index)
        np.testing.assert_array_equal(pixels, expected_pixels)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert (found.labels.tolist(), found.crowd.tolist()) == (expected.labels.tolist(), expected.crowd.tolist())


def with_ids(kind: Callable[[int], Any]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for entry in (*document["images"], *document["categories"], *document["annotations"]):
            entry |= {key: kind(entry[key]) for key in ("id", "image_id", "category_id") if key in entry}

    return change


@pytest.mark.parametrize("kind", [float, str, lambda number: f"id-{number}"], ids=["float", "digits", "text"])
def test_ids_may_be_floats_or_strings(root, tmp_path, kind):
    expected = open_detection([str(root)])
    copy = Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("copy")))
    changed(copy / "annotations.json", with_ids(kind))
    same(open_detection([str(copy)]), expected)


def test_all_numbers_may_be_floats(root, tmp_path):
    expected = open_detection([str(root)], outlines=True)
    copy = Path(shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("copy")))

    def change(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image |= {"width": float(image["width"]), "height": float(image["height"])}
        for annotation in document["annotations"]:
            x, y, w, h = annotation["bbox"]
            inside = np.zeros((48, 40), int)
            inside[x : x + w, y : y + h] = 1  # runs go down the columns
            edges = np.flatnonzero(np.diff(inside.ravel())) + 1
            runs = np.diff([0, *edges, inside.size]).tolist()
            counts = [0, *runs] if inside[0, 0] else runs
            annotation |= {"iscrowd": 0.0, "segmentation": {"size": [40.0, 48.0], "counts": list(map(float, counts))}}

    changed(copy / "annotations.json", change)
    source = open_detection([str(copy)], outlines=True)
    same(source, expected)
    for index in range(3):
        for outline, due in zip(source.boxes(index).outlines, expected.boxes(index).outlines, strict=True):
            whole = ((40, 48), (40, 48), (0, 0, 48, 40))
            np.testing.assert_array_equal(outline.mask(*whole), due.mask(*whole))


@pytest.mark.parametrize("value", [1.5, True, None, [1], float("nan")])
def test_ids_of_something_else_are_refused(root, value):
    changed(root / "annotations.json", lambda document: document["categories"][0].update(id=value))
    with pytest.raises(DataError, match="has the category"):
        open_detection([str(root)])


def test_ids_of_text_are_ordered_by_number(root):
    def change(document: dict[str, Any]) -> None:
        document["categories"] = [{"id": each, "name": f"c{each}"} for each in ("10", "9", "b", "-1", "a")]
        document["annotations"] = []

    changed(root / "annotations.json", change)
    assert open_detection([str(root)]).names == ("c-1", "c9", "c10", "ca", "cb")


def test_roboflow_splits_are_found(tmp_path):
    for seed, (split, count) in enumerate({"train": 5, "valid": 3, "test": 2}.items()):
        file = save_rectangles(tmp_path, split, count, seed)
        file.rename(tmp_path / split / "_annotations.coco.json")
    shutil.rmtree(tmp_path / "annotations")
    (tmp_path / "README.roboflow.txt").write_text("made elsewhere")
    source = open_detection([str(tmp_path)])
    assert (len(source), source.bad, source.splits) == (5, (), {"train", "validation", "test"})
    assert has_train_and_val(source.splits)
    assert len(open_detection([str(tmp_path)], role="eval")) == 3
    assert len(open_detection([str(tmp_path)], split="test")) == 2
    assert len(open_detection([str(tmp_path / "valid")])) == 3


@pytest.mark.parametrize(("name", "folder"), [("labels.json", "data"), ("result.json", "images")])
def test_layouts_of_other_programs_are_found(root, name, folder):
    expected = open_detection([str(root)]).fingerprint() if folder == "images" else None
    (root / "annotations.json").rename(root / name)
    (root / "images").rename(root / folder)
    source = open_detection([str(root)])
    assert (len(source), source.bad) == (4, ())
    assert expected in (None, source.fingerprint())


def grouped(document: dict[str, Any], name: str = "colours", identity: Any = 0) -> None:
    for category in document["categories"]:
        category["supercategory"] = name
    document["categories"].insert(0, {"id": identity, "name": name, "supercategory": "none"})


@pytest.mark.parametrize(("name", "identity"), [("colours", 0), ("colours", 0.0), ("colours", "0"), ("red", 0)])
def test_category_that_groups_the_others_is_no_class(root, name, identity):
    labels = open_detection([str(root)]).boxes(1).labels.tolist()
    changed(root / "annotations.json", lambda document: grouped(document, name, identity))
    told: list[str] = []
    source = open_detection([str(root)], on_progress=lambda what, *_: told.append(what))
    assert (source.names, source.boxes(1).labels.tolist()) == (NAMES, labels)
    assert f"category '{name}' of id 0 groups the others and has no objects; it is no class." in "".join(told)


def test_category_of_objects_stays_a_class_though_others_name_it(root):
    def of_root(document: dict[str, Any]) -> None:
        grouped(document)
        document["annotations"][0]["category_id"] = 0

    def own_group(document: dict[str, Any]) -> None:  # as COCO's person
        document["categories"].insert(0, {"id": 0, "name": "person", "supercategory": "person"})

    for change, names in ((of_root, ("colours", *NAMES)), (own_group, ("person", "colours", *NAMES)[::2])):
        before = (root / "annotations.json").read_bytes()
        changed(root / "annotations.json", change)
        told: list[str] = []
        source = open_detection([str(root)], on_progress=lambda what, *_, told=told: told.append(what))
        assert source.names[0] == names[0]
        assert len(source.names) == 3
        assert "no class" not in "".join(told)
        (root / "annotations.json").write_bytes(before)


FOUND: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: f"deep/er/{name}",
    "below the folder of images": lambda name: f"images/deep/er/{name}",
    "of Windows": lambda name: f"deep\\er\\{name}",
    "of Windows, below it": lambda name: f"images\\deep\\er\\{name}",
    "by a dot": lambda name: f"./deep/er/{name}",
}


@pytest.mark.parametrize("how", FOUND)
def test_file_names_may_hold_folders(root, how):
    (root / "images" / "deep" / "er").mkdir(parents=True)
    for file in (root / "images").glob("*.png"):
        file.rename(root / "images" / "deep" / "er" / file.name)

    def change(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["file_name"] = FOUND[how](image["file_name"])

    changed(root / "annotations.json", change)
    source = open_detection([str(root)])
    assert (len(source), source.bad) == (4, ())
    assert source.pixels_and_labels(0)[1].size == (40, 48)


REFUSED = {
    "absolute": ("/etc/passwd", "leads out of the folder"),
    "upward": ("../annotations.json", "leads out of the folder"),
    "upward below": ("images/../../x.png", "leads out of the folder"),
    "upward of Windows": ("..\\annotations.json", "leads out of the folder"),
    "an address": ("https://host/a.png", "is an address, and none is fetched"),
    "gone": ("images/gone.png", "no such file"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_file_name_that_is_not_there_is_a_bad_image_by_name(root, how):
    name, said = REFUSED[how]
    changed(root / "annotations.json", lambda document: document["images"][0].update(file_name=name))
    source = open_detection([str(root)])
    ((path, reason),) = source.bad
    assert said in reason
    assert path.endswith(name)
    assert len(source) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bbox": None}, "its box is None, not [x, y, width, height]"),
        ({"bbox": []}, "its box is [], not"),
        ({"category_id": 3.5}, "category 3.5 is none of the file's 2"),
        ({"category_id": "3"}, "category '3' is none of the file's 2"),
        ({"segmentation": [[1, 1, 5, 5]]}, "no list of polygons of three points and more"),
        ({"segmentation": {"size": [40, 48], "counts": [1919.5, 0.5]}}, "holds no runs"),
    ],
)
def test_annotation_that_is_no_object_is_named(root, values, said):
    changed(root / "annotations.json", lambda document: document["annotations"][0].update(values))
    ((_, reason),) = open_detection([str(root)], outlines=True).bad
    assert reason.startswith("annotation 100: ")
    assert said in reason


def test_ids_with_gaps_keep_their_order_and_names_are_unique(root):
    changed(root / "annotations.json", lambda document: document["categories"].append({"id": 900.0, "name": "between"}))
    assert open_detection([str(root)]).names == (*NAMES, "between")
    changed(root / "annotations.json", lambda document: document["categories"].append({"id": 901, "name": "between"}))
    with pytest.raises(DataError, match=r"has the category \{'id': 901, 'name': 'between'\} twice"):
        open_detection([str(root)])
    changed(root / "annotations.json", lambda document: document["categories"][-1].update(id=900, name="other"))
    with pytest.raises(DataError, match=r"'id': 900, 'name': 'other'\} twice"):
        open_detection([str(root)])  # 900.0 is the same id
    assert json.loads((root / "annotations.json").read_text())["categories"][-2]["id"] == 900.0
