"""Images with masks: the layouts, pairs by name, splits, and masks that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.annotations.label_maps import IGNORED, LabelMapping
from beitcli.data.sources.formats.sample import SampleSource
from beitcli.data.sources.segmentation import SegmentationSource, open_segmentation
from beitcli.data.sources.splits import has_train_and_val
from beitcli.errors import BadImage, DataError

RULE = LabelMapping(classes=4)


def save_pair(images: Path, masks: Path, name: str, mask: np.ndarray, mode: str = "L") -> None:
    for path, array in ((images / f"{name}.jpg", np.zeros((*mask.shape, 3), np.uint8)), (masks / f"{name}.png", mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array)
        if mode == "P" and array is mask:
            picture.putpalette([5, 6, 7] * 256)
        picture.save(path)


def mask_of(value: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[2:, 3:] = value
    return mask


def paths(source: SegmentationSource) -> list[str]:
    return [Path(source.path(index)).name for index in range(len(source))]


@pytest.mark.parametrize(
    ("images", "masks", "split", "role"),
    [
        ("images", "masks", None, "train"),
        ("images", "annotations", None, "eval"),
        ("train/images", "train/masks", None, "train"),
        ("val/images", "val/annotations", None, "eval"),
        ("test/images", "test/masks", "test", "eval"),
        ("images/training", "annotations/training", None, "train"),
        ("images/validation", "annotations/validation", "val", "train"),
        ("images/validation", "annotations/validation", None, "eval"),
    ],
)
def test_every_layout_is_found(tmp_path, images, masks, split, role):
    save_pair(tmp_path / images, tmp_path / masks, "a", mask_of(3), mode="P")
    source = open_segmentation([str(tmp_path)], RULE, split=split, role=role)
    pixels, labels = source.pixels_and_labels(0)
    assert (paths(source), pixels.shape) == (["a.jpg"], (6, 8, 3))
    np.testing.assert_array_equal(labels, mask_of(3))


def test_pairs_go_by_name_also_in_folders_below(tmp_path):
    for number, name in enumerate(("b", "inner/a", "inner/b")):
        save_pair(tmp_path / "images", tmp_path / "masks", name, mask_of(number + 1))
    (tmp_path / "masks" / "c.png").write_bytes(b"of no image")
    source = open_segmentation([str(tmp_path)], RULE)
    assert [int(source.labels(index, (6, 8)).max()) for index in range(3)] == [1, 2, 3]


def test_masks_in_pgm_are_the_same_classes_as_in_png(tmp_path):
    for number in range(3):
        save_pair(tmp_path / "images", tmp_path / "masks", str(number), mask_of(number))
        (tmp_path / "masks" / f"{number}.png").unlink()
        (tmp_path / "masks" / f"{number}.pgm").write_bytes(b"P5\n8 6\n2\n" + mask_of(number).tobytes())
    source = open_segmentation([str(tmp_path)], LabelMapping(classes=3))
    for number in range(3):
        np.testing.assert_array_equal(source.labels(number, (6, 8)), mask_of(number))


def test_images_without_a_mask_are_left_out_and_named(tmp_path):
    for name in "abc":
        save_pair(tmp_path / "images", tmp_path / "masks", name, mask_of(1))
    (tmp_path / "masks" / "b.png").unlink()
    source = open_segmentation([str(tmp_path)], RULE)
    assert paths(source) == ["a.jpg", "c.jpg"]
    assert source.missing == (str(tmp_path / "images" / "b.jpg"),)
    assert [source.global_index(index) for index in range(2)] == [0, 2]  # its neighbours draw what they drew


def test_several_sources_follow_one_another_and_some_of_them_keep_their_keys(tmp_path):
    for root in ("one", "two"):
        for name in "ab":
            save_pair(tmp_path / root / "images", tmp_path / root / "masks", name, mask_of(2))
    source = open_segmentation([str(tmp_path / "one"), str(tmp_path / "two")], RULE)
    some = source.subset(np.array([3, 1]))
    assert [some.path(0), some.path(1)] == [source.path(3), source.path(1)]
    assert [some.global_index(0), some.global_index(1)] == [3, 1]
    np.testing.assert_array_equal(some.pixels_and_labels(0)[1], mask_of(2))


def test_sample_has_the_background_and_its_shapes():
    source = open_segmentation(["sample"], LabelMapping(), role="eval", sample_size=32)
    drawn = SampleSource("val", 32)
    pixels, labels = source.pixels_and_labels(5)
    np.testing.assert_array_equal(pixels, np.asarray(drawn.image(5)))
    np.testing.assert_array_equal(labels, drawn.segmentation(5))
    assert set(np.unique(labels)) == {0, drawn.label(5) + 1}


def test_ade20k_numbering_is_read_by_its_rule(tmp_path):
    save_pair(tmp_path / "images" / "training", tmp_path / "annotations" / "training", "a", mask_of(150))
    rule = LabelMapping(reduce_zero_label=True, classes=150)
    labels = open_segmentation([str(tmp_path)], rule).pixels_and_labels(0)[1]
    assert (labels[0, 0], labels[-1, -1]) == (IGNORED, 149)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: Image.fromarray(mask_of(1, (6, 9))).save(path), "it is 9 x 6 pixels, the image 8 x 6"),
        (lambda path: Image.fromarray(mask_of(4)).save(path), "it holds the value 4, outside 0..3"),
        (lambda path: path.write_bytes(path.read_bytes()[:45]), "truncated"),
        (lambda path: path.write_bytes(b"<html>"), "HTML"),
        (lambda path: Image.new("RGB", (8, 6)).save(path), "mode RGB"),
    ],
)
def test_a_mask_that_does_not_fit_is_named_with_the_reason(tmp_path, spoil, said):
    save_pair(tmp_path / "images", tmp_path / "masks", "a", mask_of(1))
    path = tmp_path / "masks" / "a.png"
    spoil(path)
    with pytest.raises(BadImage, match=said) as caught:
        open_segmentation([str(tmp_path)], RULE).pixels_and_labels(0)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("references", "split", "said"),
    [
        (["nowhere"], None, "does not exist"),
        (["bare"], None, "no images/ beside masks/"),
        (["whole"], "test", "no split 'test'"),
        (["splits"], "test", "it has train, val"),
        (["whole/images/a.jpg"], None, "has no masks"),
        (["unpaired"], None, "The only image of"),
    ],
)
def test_data_without_masks_is_refused(tmp_path, references, split, said):
    save_pair(tmp_path / "whole" / "images", tmp_path / "whole" / "masks", "a", mask_of(1))
    save_pair(tmp_path / "bare", tmp_path / "elsewhere", "a", mask_of(1))
    for name in ("train", "val"):
        save_pair(tmp_path / "splits" / name / "images", tmp_path / "splits" / name / "masks", "a", mask_of(1))
    save_pair(tmp_path / "unpaired" / "images", tmp_path / "unpaired" / "masks", "a", mask_of(1))
    (tmp_path / "unpaired" / "masks" / "a.png").rename(tmp_path / "unpaired" / "masks" / "z.png")
    with pytest.raises(DataError, match=said):
        open_segmentation([str(tmp_path / each) for each in references], RULE, split=split)


def test_a_validation_split_is_seen(tmp_path):
    save_pair(tmp_path / "one" / "images", tmp_path / "one" / "masks", "a", mask_of(1))
    for name in ("training", "validation"):
        folder = tmp_path / "ade"
        save_pair(folder / "images" / name, folder / "annotations" / name, "a", mask_of(1))
    assert not has_train_and_val(open_segmentation([str(tmp_path / "one")], RULE).splits)
    assert has_train_and_val(open_segmentation([str(tmp_path / "ade")], RULE).splits)
    assert has_train_and_val(open_segmentation(["sample"], RULE).splits)
