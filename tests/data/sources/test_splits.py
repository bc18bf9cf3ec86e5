"""Splits: their names, when folders and files are splits and when classes, and what is read by default."""

from __future__ import annotations

import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.annotations.label_maps import LabelMapping
from beitcli.data.sources.base import Source
from beitcli.data.sources.detection import open_detection
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.segmentation import open_segmentation
from beitcli.data.sources.splits import are_splits, canonical, split_of, trains_apart_from_val
from beitcli.errors import DataError
from tests.helpers.coco_folder import save_rectangles

ALL = frozenset({"train", "validation", "test"})


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 6), (9, 0, 0)).save(file, "PNG")
    return file.getvalue()


def make_folder(root: Path, names: list[str]) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    return str(root)


def make_tar(path: Path, names: list[str]) -> str:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, BytesIO(picture()))
    return str(path)


def make_parquet(path: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [picture()], "label": [path.stem[:4]]}), path)
    return str(path)


def below(source: Source, root: object) -> list[str]:
    return [source.path(index).removeprefix(f"{root}/") for index in range(len(source))]


def names_of(source: Source) -> dict[str, str]:
    """The class of each image, by the last three parts of its path."""
    assert source.classes is not None
    paths = ["/".join(source.path(index).split("/")[-3:]) for index in range(len(source))]
    labels = [source.label(index) for index in range(len(source))]
    assert len(set(paths)) == len(paths)
    return {path: source.classes[label] for path, label in zip(paths, labels, strict=True) if label is not None}


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (("train", "Training", "TRAIN"), "train"),
        (("val", "Validation", "valid", "DEV"), "validation"),
        (("test", "Testing", "eval", "evaluation"), "test"),
    ],
)
def test_every_word_for_a_split_has_one_name(words, split):
    assert {canonical(word) for word in words} == {split}
    assert {split_of(f"{word}/1.parquet") for word in words} == {split}
    assert canonical("fold1") == "fold1"


@pytest.mark.parametrize(
    ("names", "are"),
    [
        (("train", "dev"), True),
        (("train", "test"), True),
        (("Train", "VAL", "extra"), True),
        (("train", "validation", None), True),
        (("train", "bus"), True),  # called so by the files themselves, as in bus-00000-of-00001
        (("train", "test", None), False),
        (("train", "training"), False),
        (("train",), False),
        ((), False),
    ],
)
def test_parts_are_splits_where_all_or_the_two_that_count_are_called_so(names, are):
    assert are_splits(names) == are


# Folders: what is read by default and what each spelling of --split reads


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "validation", "test"), ("Train", "Val", "Test"), ("training", "dev", "testing"), ("TRAIN", "valid", "")],
)
def test_folders_called_as_splits_are_never_classes(tmp_path, train, val, test):
    root = make_folder(tmp_path, [f"{each}/{c}/1.png" for each in (train, val, test) if each for c in "ab"])
    training, measured = open_data([root], labelled=True), open_data([root], role="eval", labelled=True)
    assert below(training, root) == [f"{train}/a/1.png", f"{train}/b/1.png"]
    assert below(measured, root) == [f"{val}/a/1.png", f"{val}/b/1.png"]
    assert training.classes == measured.classes == ("a", "b")
    assert training.splits == measured.splits == (ALL if test else ALL - {"test"})
    for word, there in (("train", train), ("training", train), ("Dev", val), ("validation", val), ("val", val)):
        assert below(open_data([root], split=word), root)[0].startswith(f"{there}/")
    assert below(open_data([root], split="test"), root)[0].startswith(f"{test}/") if test else True


def test_a_test_split_is_measured_on_where_no_other_is_and_never_trained_on(tmp_path):
    root = make_folder(tmp_path, ["train/a/1.png", "test/a/2.png"])
    assert below(open_data([root]), root) == ["train/a/1.png"]
    assert below(open_data([root], role="eval"), root) == ["test/a/2.png"]
    root = make_folder(tmp_path / "more", ["val/a/1.png", "test/a/2.png"])
    with pytest.raises(DataError, match="no split 'train': it has test, val") as error:
        open_data([root])
    assert "--split val" in error.value.hint
    root = make_folder(tmp_path / "alone", ["test/a/1.png", "test/b/2.png"])
    with pytest.raises(DataError, match="no split 'train': it has test"):
        open_data([root])
    assert open_data([root], role="eval").classes == ("a", "b")


def test_folders_without_images_do_not_make_classes_of_splits(tmp_path):
    root = make_folder(tmp_path, ["train/a/1.png", "test/a/2.png"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{}")
    assert below(open_data([root]), root) == ["train/a/1.png"]
    make_folder(tmp_path, ["annotations/deep/3.png"])
    assert open_data([root]).classes == ("annotations", "test", "train")


@pytest.mark.parametrize("names", [("train", "bus", "car"), ("test", "bus", "car"), ("train", "test", "bus")])
def test_classes_called_as_splits_stay_classes_beside_others(tmp_path, names):
    files = [f"{name}/{number}.png" for name in names for number in range(2)]
    for reference in (make_folder(tmp_path / "folder", files), make_tar(tmp_path / "x.tar", files)):
        source = open_data([reference], labelled=True)
        assert (source.classes, len(source), source.splits) == (tuple(sorted(names)), 6, frozenset())
        labels = [source.classes[source.label(index)] for index in range(6)]
        assert labels == [Path(source.path(index)).parent.name for index in range(6)]
        with pytest.raises(DataError, match="no split 'nonsense': it has no splits"):
            open_data([reference], split="nonsense")


def test_one_folder_alone_is_a_split_where_it_holds_classes(tmp_path):
    root = make_folder(tmp_path / "classes", ["training/a/1.png", "training/b/2.png"])
    assert open_data([root], labelled=True).classes == ("a", "b")
    root = make_folder(tmp_path / "flat", ["dev/1.png", "dev/2.png"])
    assert open_data([root]).classes == ("dev",)
    with pytest.raises(DataError, match="no split 'nonsense'"):
        open_data([root], split="nonsense")


def test_all_folders_of_a_split_are_read(tmp_path):
    files = ["train/a/1.png", "Training/b/4.png", "valid/a/2.png", "val/b/3.png", "test/c/5.png"]
    root, shard = make_folder(tmp_path / "folder", files), make_tar(tmp_path / "x.tar", files)
    first, second = (make_tar(tmp_path / f"{n}.tar", files[n::2]) for n in (0, 1))
    for references in ([root], [shard], [first, second]):
        measured = [open_data(references, role="eval", labelled=True), open_data(references, split="valid")]
        for source in (*measured, open_data(references, split="val")):
            assert names_of(source) == {"val/b/3.png": "b", "valid/a/2.png": "a"}
            assert source.splits == ALL
        training = open_data(references, labelled=True)
        assert names_of(training) == {"train/a/1.png": "a", "Training/b/4.png": "b"}
        assert names_of(open_data(references, split="TEST")) == {"test/c/5.png": "c"}
    whole = open_data([root])
    assert (whole.name, whole.classes) == (root, ("a", "b"))


def test_two_names_of_one_split_alone_are_read_where_they_hold_classes(tmp_path):
    files = ["train/a/1.png", "training/b/2.png"]
    for reference in (make_folder(tmp_path / "folder", files), make_tar(tmp_path / "x.tar", files)):
        assert names_of(open_data([reference], labelled=True)) == {"train/a/1.png": "a", "training/b/2.png": "b"}
        with pytest.raises(DataError, match="no split 'val': it has train, training"):
            open_data([reference], role="eval")


def test_an_empty_folder_of_a_split_is_passed_over(tmp_path):
    root = make_folder(tmp_path, ["train/a/1.png", "val/a/2.png"])
    (tmp_path / "training").mkdir()
    assert names_of(open_data([root])) == {"train/a/1.png": "a"}


@pytest.mark.parametrize("split", ["", ".", "..", "../other", "train/a", "/"])
def test_only_the_plain_name_of_a_folder_is_a_split(tmp_path, split):
    make_folder(tmp_path / "other", ["a/1.png"])
    root = make_folder(tmp_path / "data", ["train/a/1.png", "val/a/2.png", "extra/b/3.png"])
    masked, boxed = make_folder(tmp_path / "masked", ["train/images/1.png", "train/masks/1.png"]), tmp_path / "boxed"
    save_rectangles(boxed, "train", 2, seed=0)
    for opened in (
        lambda: open_data([root], split=split),
        lambda: open_data(["sample"], split=split),
        lambda: open_segmentation([masked], LabelMapping(classes=4), split=split),
        lambda: open_detection([str(boxed)], split=split),
    ):
        with pytest.raises(DataError, match=f"no split '{split}': it has"):
            opened()
    assert names_of(open_data([root], split="extra")) == {"extra/b/3.png": "b"}


@pytest.mark.parametrize("names", [("dev", "eval"), ("eval", "valid")])
def test_folders_without_classes_are_themselves_classes_unless_called_train_or_val(tmp_path, names):
    flat, deep = ([f"{name}/{below}{n}.png" for name in names for n in range(2)] for below in ("", "c/"))
    for number, kind in enumerate((make_folder, make_tar)):
        place = tmp_path / str(number)
        place.mkdir()
        source = open_data([kind(place / "flat.tar", flat)], labelled=True)
        assert (source.classes, len(source), source.splits) == (names, 4, frozenset())
        divided = open_data([kind(place / "deep.tar", deep)], role="eval")
        assert (divided.classes, len(divided), divided.splits) == (("c",), 2, {"validation", "test"})
        for other in ("val", "train"):
            named = kind(place / f"{other}.tar", [f"{other}/1.png", "test/2.png"])
            assert open_data([named], split="test").splits == {"test", canonical(other)}


@pytest.mark.parametrize("alone", ["train", "val", "test"])
def test_a_tar_of_one_split_is_read_in_its_role_only_as_a_folder_is(tmp_path, alone):
    files = [f"{alone}/a/1.png", f"{alone}/b/2.png"]
    for reference in (make_folder(tmp_path / "folder", files), make_tar(tmp_path / "x.tar", files)):
        its, other, missing = ("train", "eval", "val") if alone == "train" else ("eval", "train", "train")
        assert len(open_data([reference], role=its, labelled=True)) == 2
        with pytest.raises(DataError, match=f"no split '{missing}': it has {alone}"):
            open_data([reference], role=other)
        assert len(open_data([reference], role=other, split=alone)) == 2


# Every format knows its splits


def test_tar_top_folders_are_splits_by_any_of_their_names(tmp_path):
    shard = make_tar(tmp_path / "x.tar", [f"{s}/{c}/1.png" for s in ("Train", "validation", "test") for c in "ab"])
    assert below(open_data([shard], labelled=True), shard) == ["Train/a/1.png", "Train/b/1.png"]
    assert below(open_data([shard], role="eval"), shard) == ["validation/a/1.png", "validation/b/1.png"]
    assert below(open_data([shard], split="testing"), shard) == ["test/a/1.png", "test/b/1.png"]
    assert open_data([shard]).splits == ALL
    with pytest.raises(DataError, match="no split 'nonsense': it has test, train, validation"):
        open_data([shard], split="nonsense")
    flat = make_tar(tmp_path / "flat.tar", ["valid/1.png", "train/2.png"])
    assert open_data([flat]).classes is None


def test_tar_with_one_unknown_top_folder_has_no_split(tmp_path):
    shard = make_tar(tmp_path / "x.tar", ["stuff/a/1.png", "stuff/b/2.png"])
    with pytest.raises(DataError, match="no split 'nonsense': it has no splits"):
        open_data([shard], split="nonsense")


def test_names_of_files_that_were_given_tell_splits_where_one_is_asked_for(tmp_path):
    tars = [make_tar(tmp_path / f"{name}.tar", [f"{name}{n}.png" for n in range(2)]) for name in ("my-train", "my-dev")]
    assert len(open_data(tars)) == 4  # as they were named one by one
    assert below(open_data(tars, split="val"), tmp_path) == ["my-dev.tar/my-dev0.png", "my-dev.tar/my-dev1.png"]
    assert open_data(tars, split="train").splits == {"train", "validation"}
    (tmp_path / "valid").mkdir()
    inside = make_tar(tmp_path / "valid" / "a.tar", ["1.png"])
    assert len(open_data([inside], split="dev")) == 1
    lists = [tmp_path / f"{name}.txt" for name in ("train", "test")]
    for each in lists:
        each.write_text(f"{each.stem}.png\n")
    source = open_data([str(each) for each in lists], split="train")
    assert [source.path(index) for index in range(len(source))] == ["train.png"]
    with pytest.raises(DataError, match="no split 'val': it has test, train"):
        open_data([str(each) for each in lists], split="val")


def test_parquet_knows_its_splits(tmp_path):
    files = [make_parquet(tmp_path / "data" / f"{name}.parquet") for name in ("train", "valid", "test")]
    assert open_data([str(tmp_path)]).splits == ALL
    assert open_data(files).splits == frozenset()
    assert open_data(files, split="train").splits == ALL


def test_what_all_data_is_divided_into_counts(tmp_path):
    divided = make_folder(tmp_path / "one", ["train/a/1.png", "val/a/2.png"])
    shard = make_tar(tmp_path / "x.tar", ["training/a/1.png", "dev/a/2.png", "test/a/3.png"])
    assert open_data([divided, shard]).splits == {"train", "validation"}
    assert open_data([divided, shard, "sample"]).splits == {"train", "validation"}
    assert open_data([divided, make_folder(tmp_path / "two", ["a/1.png"])]).splits == frozenset()


@pytest.mark.parametrize(
    ("split", "there", "apart"),
    [
        (None, ALL, True),
        ("training", ALL, True),
        ("val", ALL, False),
        ("test", ALL, False),
        (None, {"train", "test"}, False),
        (None, frozenset(), False),
    ],
)
def test_training_leaves_a_validation_split_aside(split, there, apart):
    assert trains_apart_from_val(split, there) == apart


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "Valid"), ("train", "dev")])
def test_masks_and_boxes_have_the_same_splits(tmp_path, train, val):
    for number, name in enumerate((train, val)):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / "masked" / name / kind).mkdir(parents=True)
            Image.fromarray(np.full((6, 8), number + 1, np.uint8)).convert(mode).save(
                tmp_path / "masked" / name / kind / f"{name}.png"
            )
        save_rectangles(tmp_path / "boxed", name, 2 + number, seed=number)
    rule = LabelMapping(classes=4)
    for opened, root in (
        (lambda root, **how: open_segmentation([root], rule, **how), tmp_path / "masked"),
        (lambda root, **how: open_detection([root], **how), tmp_path / "boxed"),
    ):
        training, measured = opened(str(root)), opened(str(root), role="eval")
        assert training.splits == measured.splits == {"train", "validation"}
        assert f"/{train}/" in training.path(0)
        assert f"/{val}/" in measured.path(0)
        assert opened(str(root), split="validation").path(0) == measured.path(0)
        with pytest.raises(DataError, match="no split 'nonsense'"):
            opened(str(root), split="nonsense")


# What is left aside is told


def test_what_a_choice_leaves_aside_is_told_once(tmp_path):
    told: list[tuple[str, int, int, str]] = []
    root = make_folder(tmp_path, ["train/a/1.png", "dev/a/2.png", "test/a/3.png"])
    open_data([root], on_progress=lambda *event: told.append(event))
    assert told == [(f"'{root}': reading split train, not dev and test. --split reads another.", 0, 0, "")]
    told.clear()
    open_data([root], split="test", on_progress=lambda *event: told.append(event))
    assert told == [(f"'{root}': reading split test, not dev and train. --split reads another.", 0, 0, "")]
    told.clear()
    open_data(["sample"], on_progress=lambda *event: told.append(event))
    open_data([make_folder(tmp_path / "whole", ["a/1.png"])], on_progress=lambda *event: told.append(event))
    assert told == []


def test_images_outside_of_the_splits_are_told(tmp_path):
    told: list[str] = []
    files = ["train/a/1.png", "val/a/2.png", "extra/a/3.png", "more/4.png", "5.png", "6.png"]
    root = make_folder(tmp_path / "folder", [*files, ".hidden.png"])
    (tmp_path / "folder" / "notes").mkdir()
    assert len(open_data([root], on_progress=lambda *event: told.append(event[0]))) == 1
    end = "--split reads another."
    assert told == [
        f"'{root}': reading split train, not val. In no split and not read: extra and more and 2 images. {end}"
    ]
    told.clear()
    tars = [make_tar(tmp_path / "0.tar", files[:2]), make_tar(tmp_path / "1.tar", ["bus/train/1.png", *files[2:5]])]
    source = open_data(tars, on_progress=lambda *event: told.append(event[0]))
    assert (len(source), told) == (
        1,
        [f"'{tars[0]} and 1 more': reading split train, not val. In no split and not read: 4 images. {end}"],
    )
    told.clear()
    lists = [tmp_path / f"{name}.txt" for name in ("train", "val", "rest")]
    for each in lists:
        each.write_text(f"{each.stem}.png\n")
    names = [str(each) for each in lists]
    assert len(open_data(names, split="val", on_progress=lambda *event: told.append(event[0]))) == 1
    assert told == [
        f"'{names[0]} and 2 more': reading split validation, not train. In no split and not read: 1 file. {end}"
    ]
    told.clear()
    assert len(open_data(names, on_progress=lambda *event: told.append(event[0]))) == 3
    assert told == [f"'{names[0]} and 2 more' names files of several splits, and all are read; --split chooses."]


def test_annotations_beside_splits_are_read_and_the_splits_told(tmp_path):
    told: list[str] = []
    for name in ("train", "val"):
        save_rectangles(tmp_path, name, 2, seed=1)
    (tmp_path / "annotations.json").write_text((tmp_path / "annotations" / "instances_train.json").read_text())
    shutil.copytree(tmp_path / "train", tmp_path / "images")
    source = open_detection([str(tmp_path)], on_progress=lambda *event: told.append(event[0]))
    assert source.path(0).startswith(f"{tmp_path}/images/")
    splits = "not split train and validation. --split reads another."
    assert told[0] == f"'{tmp_path}': reading annotations.json, {splits}"


def test_masks_of_two_folders_of_a_split_are_read(tmp_path):
    for number, name in enumerate(("train", "training", "val")):
        for kind in ("images", "masks"):
            (tmp_path / name / kind).mkdir(parents=True)
            mode = "RGB" if kind == "images" else "L"
            Image.fromarray(np.full((6, 8), number + 1, np.uint8)).convert(mode).save(tmp_path / name / kind / "1.png")
    source = open_segmentation([str(tmp_path)], LabelMapping(classes=4))
    assert below(source, tmp_path) == ["train/images/1.png", "training/images/1.png"]
    assert source.splits == {"train", "validation"}


def test_a_misspelt_split_is_answered_with_the_one_that_was_meant(tmp_path):
    names = [f"{split}/{kind}/a.png" for split in ("train", "val", "test") for kind in ("blue", "red")]
    root = make_folder(tmp_path / "data", names)
    with pytest.raises(DataError, match="no split 'tset'") as caught:
        open_data([root], Request(split="tset"))
    assert caught.value.hint == "Did you mean '--split test'?"
