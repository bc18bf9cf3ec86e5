"""Sources with boxes: COCO's layouts, the boxes of `sample`, and everything that can be wrong with annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.data.annotations.boxes import box_of_mask
from beitcli.data.sources.detection import open_detection
from beitcli.data.sources.formats.sample import SampleSource
from beitcli.data.sources.splits import has_train_and_val
from beitcli.errors import BadImage, DataError
from tests.helpers.coco_folder import COLOURS, NAMES, SHAPE, changed, save_rectangles


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    save_rectangles(root, "train2017", 6, seed=0)
    save_rectangles(root, "val2017", 3, seed=1)
    return root


@pytest.fixture
def copied(coco: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coco, tmp_path / "coco"))


def test_boxes_hold_the_pixels_of_their_class(coco):
    source = open_detection([str(coco)])
    assert (len(source), source.names, source.bad) == (6, NAMES, ())
    for index in range(len(source)):
        pixels, found = source.pixels_and_labels(index)
        assert found.size == SHAPE
        for box, label in zip(found.boxes.astype(int), found.labels, strict=True):
            x0, y0, x1, y1 = box
            assert (pixels[y0:y1, x0:x1] == COLOURS[NAMES[label]]).all(axis=-1).mean() > 0.6  # one may lie over it
            assert found.areas[0] > 0
    assert [len(source.boxes(index)) for index in range(6)] == [1, 2, 1, 2, 1, 0]


def test_splits_are_chosen_by_role_and_by_name(coco):
    assert has_train_and_val(open_detection([str(coco)]).splits)
    assert len(open_detection([str(coco)], role="eval")) == 3
    assert len(open_detection([str(coco)], split="train", role="eval")) == 6
    with pytest.raises(DataError, match="has no split 'test': it has train, validation"):
        open_detection([str(coco)], split="test")


def test_annotations_end_in_json_in_any_case(copied, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(copied / "val2017", flat / "images")
    shutil.copy(copied / "annotations" / "instances_val2017.json", flat / "Annotations.JSON")
    for file in (copied / "annotations").iterdir():
        file.rename(file.with_suffix(".JSON"))
    assert len(open_detection([str(copied)], role="eval")) == len(open_detection([str(flat)])) == 3


def test_other_layouts_are_found_too(coco, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(coco / "val2017", flat / "images")
    shutil.copy(coco / "annotations" / "instances_val2017.json", flat / "annotations.json")
    assert len(open_detection([str(flat)])) == 3
    assert not has_train_and_val(open_detection([str(flat)]).splits)
    beside = tmp_path / "beside"
    shutil.copytree(coco / "val2017", beside)
    shutil.copy(flat / "annotations.json", beside / "annotations.json")
    assert len(open_detection([str(beside)])) == 3
    inner = tmp_path / "inner"
    shutil.copytree(flat, inner / "train")
    shutil.copytree(flat, inner / "valid")
    assert has_train_and_val(open_detection([str(inner)]).splits)
    assert len(open_detection([str(inner)], role="eval")) == 3
    deep = tmp_path / "deep"
    shutil.copytree(coco / "annotations", deep / "annotations")
    for split in ("train2017", "val2017"):
        shutil.copytree(coco / split, deep / "images" / split)
    assert len(open_detection([str(deep)])) == 6
    exported = tmp_path / "exported"  # as CVAT does
    shutil.copytree(flat / "images", exported / "images")
    (exported / "annotations").mkdir()
    shutil.copy(flat / "annotations.json", exported / "annotations" / "instances_default.json")
    assert len(open_detection([str(exported)])) == 3
    short = tmp_path / "short"
    shutil.copytree(coco, short)
    for split in ("train", "val"):
        (short / f"{split}2017").rename(short / split)
    assert len(open_detection([str(short)], role="eval")) == 3


def test_boxes_of_sample_enclose_what_is_seen_of_the_shape():
    source = open_detection(["sample"], sample_size=48)
    drawn = SampleSource(size=48)
    for index in range(30):
        found, seen = source.boxes(index), drawn.segmentation(index) > 0
        (x0, y0, x1, y1), area = found.boxes[0].astype(int), found.areas[0]
        assert seen[y0:y1, x0:x1].sum() == seen.sum() == area
        for edge in (seen[y0], seen[y1 - 1], seen[:, x0], seen[:, x1 - 1]):
            assert edge.any()  # no tighter box would do
        assert source.names[found.labels[0]] == drawn.classes[drawn.label(index)]


def test_box_of_mask_has_the_edges_of_its_pixels():
    mask = np.zeros((5, 7), bool)
    assert box_of_mask(mask) is None
    mask[2, 3] = True
    assert box_of_mask(mask) == (3, 2, 4, 3)
    mask[4, 0] = True
    assert box_of_mask(mask) == (0, 2, 4, 5)


def test_parts_keep_their_boxes_and_keys(coco):
    source = open_detection([str(coco)])
    part = source.subset(np.array([4, 1])).subset(np.array([1]))
    assert part.path(0) == source.path(1)
    assert part.global_index(0) == 1
    np.testing.assert_array_equal(part.boxes(0).boxes, source.boxes(1).boxes)
    assert part.fingerprint() != source.fingerprint()


def test_fingerprint_follows_the_boxes(copied):
    before = open_detection([str(copied)]).fingerprint()
    assert open_detection([str(copied)]).fingerprint() == before
    changed(
        copied / "annotations" / "instances_train2017.json", lambda d: d["annotations"][0]["bbox"].__setitem__(2, 5)
    )
    assert open_detection([str(copied)]).fingerprint() != before


def test_classes_are_matched_by_name(coco):
    source = open_detection([str(coco)])
    renamed = source.renamed(("red", "green", "blue"))
    assert [renamed.names[label] for label in renamed.boxes(1).labels] == [
        source.names[label] for label in source.boxes(1).labels
    ]
    with pytest.raises(
        DataError, match=r"does not know 1 of the 2 classes of .*, namely: 'blue'. It knows 2: red, green\."
    ):
        source.renamed(("red", "green"))
    both = open_detection([str(coco), str(coco)])
    assert len(both) == 12
    np.testing.assert_array_equal(both.boxes(7).boxes, source.boxes(1).boxes)
    with pytest.raises(DataError, match="have other categories"):
        open_detection([str(coco), "sample"])


Change = Callable[[dict[str, Any]], Any]


def of_annotation(**values: Any) -> Change:
    """The first annotation, which is the first image's only one."""
    return lambda document: document["annotations"][0].update(values)


BAD: dict[str, tuple[Change, str]] = {
    "no area": (of_annotation(bbox=[5, 5, 0, 4]), "annotation 100: its box [5, 5, 0, 4] has no area"),
    "negative": (of_annotation(bbox=[5, 5, 4, -4]), "its box [5, 5, 4, -4] has no area"),
    "right of it": (of_annotation(bbox=[40, 5, 20, 4]), "[40, 5, 20, 4] reaches beyond the image of 48 x 40 pixels"),
    "above": (of_annotation(bbox=[4, -5, 20, 9]), "[4, -5, 20, 9] reaches beyond the image of 48 x 40 pixels"),
    "in the rounding": (of_annotation(bbox=[48, 5, 0.5, 9]), "has no area within the image"),
    "no number": (of_annotation(bbox=[4, "5", 6, 7]), "its box is [4, '5', 6, 7], not [x, y, width, height]"),
    "infinite": (of_annotation(bbox=[4, 5, 1e400, 7]), "its box is [4, 5, inf, 7], not [x, y, width, height]"),
    "huge": (of_annotation(bbox=[4, 5, 10**400, 7]), "its box is [4, 5, 1000"),
    "three numbers": (of_annotation(bbox=[4, 5, 6]), "its box is [4, 5, 6], not"),
    "none": (lambda d: d["annotations"][0].pop("bbox"), "its box is None, not"),
    "unknown category": (of_annotation(category_id=99), "category 99 is none of the file's 2"),
    "category of text": (of_annotation(category_id="3"), "category '3' is none of the file's 2"),
    "crowd of text": (of_annotation(iscrowd="no"), "iscrowd is 'no', not 0 or 1"),
    "no width": (lambda d: d["images"][0].pop("width"), "its annotations say None x 40 pixels"),
    "width of a flag": (lambda d: d["images"][0].update(width=True), "its annotations say True x 40 pixels"),
    "terapixels": (
        lambda d: d["images"][0].update(width=10**6, height=10**6),
        "say 1000000 x 1000000 pixels, more than the 178.9 megapixels allowed",
    ),
    "not there": (lambda d: d["images"][0].update(file_name="gone.png"), "no such file"),
    "half a character": (lambda d: d["images"][0].update(file_name="\ud83d.png"), "no such file"),
    "outside": (lambda d: d["images"][0].update(file_name="../../x.png"), "leads out of the folder of images"),
    "absolute": (lambda d: d["images"][0].update(file_name="/etc/passwd"), "leads out of the folder of images"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_with_one_image_makes_it_a_bad_one(copied, fault):
    change, said = BAD[fault]
    changed(copied / "annotations" / "instances_train2017.json", change)
    source = open_detection([str(copied)])
    ((path, reason),) = source.bad
    assert said in reason
    assert path.startswith(str(copied / "train2017")) or path == "/etc/passwd"
    assert len(source) == 5
    assert source.global_index(0) == 1  # draws of the others stay as they are


WRONG: dict[str, tuple[Change | str, str]] = {
    "no JSON": ("{", "Expecting property name"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "not UTF-8": ("\udcff\udcfe\udcfd", "codec can't decode"),
    "a list": ("[]", "it is a JSON list"),
    "something else": ('{"version": "5.0", "shapes": []}', "no list of images and annotations and categories"),
    "annotations of text": (lambda d: d.update(annotations="none"), "no list of annotations is there"),
    "no images": (lambda d: d.update(images=[], annotations=[]), "lists no images"),
    "no categories": (lambda d: d.update(categories=[]), "has no categories"),
    "a nameless category": (lambda d: d["categories"][0].pop("name"), "has the category {'id': 7}"),
    "a category twice": (lambda d: d["categories"][0].update(id=3), "twice"),
    "a name twice": (lambda d: d["categories"][0].update(name="blue"), "twice"),
    "an image without id": (lambda d: d["images"][1].pop("id"), "Image 2 of"),
    "an image of text": (lambda d: d["images"].append("07.png"), "Image 7 of .* is '07.png'"),
    "two of an id": (lambda d: d["images"][1].update(id=10), "lists two images of id 10"),
    "an annotation of text": (lambda d: d["annotations"].append("box"), "has the annotation 'box'"),
    "of no image": (of_annotation(image_id=999), r"has 1 annotations .*annotation 100 of image 999"),
    "of a list": (of_annotation(image_id=[10]), r"annotation 100 of image \[10\]"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_the_file_is_told_with_its_name(copied, fault):
    file = copied / "annotations" / "instances_train2017.json"
    change, said = WRONG[fault]
    if isinstance(change, str):
        file.write_bytes(change.encode(errors="surrogateescape"))
    else:
        changed(file, change)
    with pytest.raises(DataError, match=said) as error:
        open_detection([str(copied)])
    assert str(file) in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("box", [[-0.4, 3, 20, 20], [30, 20.2, 18.9, 20.5]])
def test_box_beyond_the_image_by_a_rounding_is_cut(copied, box):
    changed(copied / "annotations" / "instances_train2017.json", of_annotation(bbox=box))
    found = open_detection([str(copied)]).boxes(0).boxes
    x0, y0, x1, y1 = found[0].tolist()
    assert (x0 >= 0, y0 >= 0, x1 <= 48, y1 <= 40) == (True,) * 4
    assert x1 - x0 >= 18


def test_image_of_another_size_than_its_annotations_say_is_bad(copied):
    Image.new("RGB", (30, 20)).save(copied / "train2017" / "00.png")
    with pytest.raises(BadImage, match="it is 30 x 20 pixels, its annotations say 48 x 40"):
        open_detection([str(copied)]).pixels_and_labels(0)


def test_missing_data_and_data_without_annotations_are_refused(coco, tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n")
    for reference, said in (
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "list.txt", "has no boxes"),
        (coco / "train2017", "has no annotations in COCO's layout"),
    ):
        with pytest.raises(DataError, match=said) as error:
            open_detection([str(reference)])
        assert "annotations.json" in error.value.hint


def test_area_is_the_file_s_own_and_crowds_are_told(copied):
    changed(copied / "annotations" / "instances_train2017.json", of_annotation(area=12.5, iscrowd=1))
    found = open_detection([str(copied)]).boxes(0)
    assert (found.areas[0], found.crowd.tolist()) == (12.5, [True])
    document = json.loads((copied / "annotations" / "instances_train2017.json").read_text())
    document["annotations"][0].pop("area")
    (copied / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    width, height = document["annotations"][0]["bbox"][2:]
    assert open_detection([str(copied)]).boxes(0).areas[0] == width * height
