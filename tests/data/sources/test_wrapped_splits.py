"""Splits below one folder that holds everything, as archives and their unpacked folders have it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.data.annotations.label_maps import LabelMapping
from beitcli.data.sources.detection import open_detection
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.segmentation import open_segmentation
from beitcli.errors import DataError
from tests.data.sources.test_splits import ALL, make_folder, make_tar, names_of, picture
from tests.helpers.coco_folder import save_rectangles

FILES = [f"{split}/{name}/{split[0]}{name}.png" for split in ("train", "val", "test") for name in ("cat", "dog")]
KINDS = [
    lambda place, files: make_folder(place / "folder", files),
    lambda place, files: make_tar(place / "one.tar", files),
]
Make = Callable[[Path, list[str]], str]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("wrapper", ["dataset/", "archive/pets-v1.2/"])
def test_splits_below_a_wrapper_are_splits(tmp_path: Path, make: Make, wrapper: str) -> None:
    reference = make(tmp_path, [wrapper + name for name in FILES])
    for role, split, chosen in (("train", None, "train"), ("eval", None, "val"), ("train", "test", "test")):
        source = open_data([reference], role=role, split=split, labelled=True)
        assert names_of(source) == {name: name.split("/")[1] for name in FILES if name.startswith(chosen)}
        assert source.splits == ALL
    with pytest.raises(DataError, match="no split 'nonsense': it has test, train, val"):
        open_data([reference], split="nonsense")


@pytest.mark.parametrize("make", KINDS)
def test_a_split_of_another_name_below_a_wrapper_is_read_when_named(tmp_path: Path, make: Make) -> None:
    reference = make(tmp_path, [f"set/{name}" for name in (*FILES, "extra/cat/1.png", "extra/dog/2.png")])
    source = open_data([reference], split="extra", labelled=True)
    assert names_of(source) == {"extra/cat/1.png": "cat", "extra/dog/2.png": "dog"}


@pytest.mark.parametrize("make", KINDS)
def test_images_of_a_split_without_classes_get_none_from_its_name(tmp_path: Path, make: Make) -> None:
    source = open_data([make(tmp_path, ["set/train/1.png", "set/val/2.png"])])
    assert len(source) == 1
    assert source.classes is None


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "files",
    [
        ["set/cat/1.png", "set/dog/2.png"],
        ["set/train/1.png", "set/bus/2.png"],
        ["set/train/1.png", "set/val/2.png", "other/bus/3.png"],
        ["set/train/a/1.png", "set/val/a/2.png", "3.png"],
    ],
)
def test_one_folder_of_something_else_is_no_wrapper(tmp_path: Path, make: Make, files: list[str]) -> None:
    source = open_data([make(tmp_path, files)])
    assert (len(source), source.splits) == (len(files), frozenset())


def test_parquet_rows_that_name_the_images_of_their_folder_are_read_with_their_labels(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        path.write_bytes(picture())
    rows = pa.array([{"bytes": None, "path": str(path)} for path in paths])
    pq.write_table(pa.table({"image": rows, "label": ["cat", "dog"] * 2}), tmp_path / "train.parquet")
    source = open_data([str(tmp_path)], labelled=True)
    assert (len(source), source.classes) == (4, ("cat", "dog"))
    assert [source.label(index) for index in range(4)] == [0, 1, 0, 1]


def paths_below(root: Path, source: object) -> list[str]:
    return [str(Path(source.path(index)).relative_to(root)) for index in range(len(source))]


MASKED = {
    "in each split": ["train/images/a.png", "train/masks/a.png", "val/images/b.png", "val/masks/b.png"],
    "as ADE20K": [
        f"{kind}/{name}.png" for name in ("training/a", "validation/b") for kind in ("images", "annotations")
    ],
}


@pytest.mark.parametrize("files", MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("wrapper", ["dataset", "archive/scenes-v1.2"])
def test_splits_of_masks_below_a_wrapper_are_splits(tmp_path: Path, wrapper: str, files: list[str]) -> None:
    root = make_folder(tmp_path / "root", [f"{wrapper}/{name}" for name in files])
    for role, name in (("train", "a"), ("eval", "b")):
        source = open_segmentation([root], LabelMapping(), role=role)
        (path,) = paths_below(Path(root), source)
        assert path.startswith(wrapper)
        assert Path(path).name == f"{name}.png"
        assert source.splits == {"train", "validation"}
    with pytest.raises(DataError, match="no split 'nonsense': it has train"):
        open_segmentation([root], LabelMapping(), split="nonsense")


def test_masks_below_a_wrapper_are_found_without_splits_and_are_no_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root", ["set/images/a.png", "set/masks/a.png", "set/notes.txt"])
    assert paths_below(Path(root), open_segmentation([root], LabelMapping())) == ["set/images/a.png"]
    assert paths_below(Path(root), open_segmentation([root], LabelMapping(), split="set")) == ["set/images/a.png"]
    assert paths_below(Path(root), open_data([root])) == ["set/images/a.png"]


@pytest.mark.parametrize("beside", ["other/a.png", "a.png"])
def test_masks_beside_other_images_are_below_no_wrapper(tmp_path: Path, beside: str) -> None:
    root = make_folder(tmp_path / "root", ["set/inner/images/a.png", "set/inner/masks/a.png", beside])
    with pytest.raises(DataError, match="no images/ beside masks/"):
        open_segmentation([root], LabelMapping())


@pytest.mark.parametrize("layout", ["coco", "roboflow"])
@pytest.mark.parametrize("wrapper", ["dataset", "archive/things-v1.2"])
def test_splits_of_boxes_below_a_wrapper_are_splits(tmp_path: Path, layout: str, wrapper: str) -> None:
    root = tmp_path / "root"
    inner = root / wrapper
    for split, images in (("train", 3), ("val", 2)):
        annotations = save_rectangles(inner, split, images, seed=0)
        if layout == "roboflow":
            annotations.rename(inner / split / "_annotations.coco.json")
    if layout == "roboflow":
        (inner / "annotations").rmdir()
    for role, split, images in (("train", "train", 3), ("eval", "val", 2)):
        source = open_detection([str(root)], role=role)
        assert {Path(each).parent for each in paths_below(root, source)} == {Path(wrapper, split)}
        assert (len(source), source.bad, source.splits) == (images, (), {"train", "validation"})
    with pytest.raises(DataError, match="no split 'test': it has train, validation"):
        open_detection([str(root)], split="test")


def test_boxes_below_a_wrapper_are_found_without_splits(tmp_path: Path) -> None:
    inner = tmp_path / "root" / "set"
    annotations = save_rectangles(inner, "images", 2, seed=0)
    shutil.move(annotations, inner / "annotations.json")
    annotations.parent.rmdir()
    for split in (None, "set"):
        assert len(open_detection([str(tmp_path / "root")], split=split)) == 2


@pytest.mark.parametrize("wrapper", ["", "coco/"])
def test_splits_below_images_beside_annotations_of_boxes_are_splits(tmp_path: Path, wrapper: str) -> None:
    for split, count in (("train", 4), ("val", 2)):
        annotations = save_rectangles(tmp_path / "made", split, count, seed=count)
        images = tmp_path / "data" / wrapper / "images" / split
        shutil.copytree(tmp_path / "made" / split, images)
        (tmp_path / "data" / wrapper / "annotations").mkdir(exist_ok=True)
        shutil.copy(annotations, tmp_path / "data" / wrapper / "annotations")
    data = [str(tmp_path / "data")]
    assert [len(open_data(data, role=role)) for role in ("train", "eval")] == [4, 2]
    assert open_data(data, role="train").splits == {"train", "validation"}
