"""Segmenters of the release and of transformers: their own logits, from their own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from beitcli.config.inspect_export import InspectConfig
from beitcli.config.normalization import IMAGENET, INCEPTION
from beitcli.engine.inspect import inspect
from beitcli.engine.segmentation.evaluate import label_mapping_of
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import load_segmenter
from beitcli.models.checkpoints.head_keys import head_name
from beitcli.models.checkpoints.open import open_model
from beitcli.models.networks.segmenter import Segmenter
from tests.helpers.foreign_models import Theirs, hf_segmenter

DEPTH = 6
RELEASED_BLOCKS = (1, 2, 3, 5)  # of 6
EVERY = {"num_hidden_layers": DEPTH}


def as_released(ours: Segmenter) -> dict[str, torch.Tensor]:
    """Our tensors by mmseg's names."""

    def theirs(name: str) -> str:
        if name.startswith(("decode_head.fpn1.", "decode_head.fpn2.")):
            return name.replace("decode_head.", "backbone.")
        if name.startswith("decode_head.auxiliary."):
            return name.replace("decode_head.auxiliary.", "auxiliary_head.")
        return name if name.startswith("decode_head.") else f"backbone.{name}"

    return {theirs(name): tensor.clone() for name, tensor in ours.state_dict().items()}


def assert_same_logits(theirs: Theirs, ours: Segmenter) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(images).logits
        assert (ours(images)[0] - expected).abs().max() <= 1e-5 * expected.abs().max()
        if theirs.auxiliary_head is not None:
            (level,) = [each for each in ours.decode_head.pyramid(ours.maps(images)) if each.shape[-1] == 4]
            expected = theirs.auxiliary_head([level] * 4)
            torch.testing.assert_close(ours.decode_head.auxiliary(level), expected, rtol=1e-5, atol=1e-5)


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "first four": {},
    "any blocks": {**EVERY, "out_indices": [2, 3, 5, 6]},
    "named stages": {**EVERY, "out_indices": None, "out_features": ["stage1", "stage2", "stage4", "stage6"]},
    "from the end": {**EVERY, "out_indices": [-5, -4, -2, -1]},
    "the last one, which transformers calls 0": {**EVERY, "out_indices": [0, 2, 3, 5]},
    "no auxiliary head": {"use_auxiliary_head": False},
    "another auxiliary head": {"auxiliary_channels": 24, "auxiliary_num_convs": 2, "auxiliary_concat_input": True},
    "auxiliary classifier only": {"auxiliary_channels": 48, "auxiliary_num_convs": 0},
    "other bins": {"pool_scales": [1, 4]},
    "more bins": {"pool_scales": [1, 2, 3, 4, 6]},
    "epsilon, two norms": {"layer_norm_eps": 1e-2, "use_mean_pooling": False},
    "absolute positions": {"use_absolute_position_embeddings": True, "use_relative_position_bias": False},
    "shared bias": {"use_shared_relative_position_bias": True, "use_relative_position_bias": False},
}


@pytest.mark.parametrize("case", OWN_SETTINGS)
def test_transformers_segmenter_gives_its_own_logits(tmp_path, case):
    theirs = hf_segmenter(tmp_path / "hf", 7, **OWN_SETTINGS[case])
    ours, checkpoint = load_segmenter(open_model(str(tmp_path / "hf")))
    assert (checkpoint.kind, checkpoint.outputs, checkpoint.head) == ("segmenter", 7, "upernet")
    assert checkpoint.key_mapping.dropped == ()
    assert_same_logits(theirs, ours)
    assert checkpoint.parameters == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({"out_indices": [1, 2, 3, 5]}, (-1, 0, 1, 3)),
        ({"out_indices": [7, 5, 3, 2]}, (0, 1, 3, 5)),  # transformers asks which are there; 7 is the last of 6 blocks
        ({"out_indices": [2, 3, 4, 7], "use_auxiliary_head": False, "pool_scales": [2, 3]}, (0, 1, 2, 5)),
    ],
)
def test_data2vec_segmenter_gives_its_own_logits(tmp_path, settings, blocks):
    theirs = hf_segmenter(tmp_path / "hf", 7, transformers.Data2VecVisionForSemanticSegmentation, **EVERY, **settings)
    ours, checkpoint = load_segmenter(open_model(str(tmp_path / "hf")))
    assert (checkpoint.format, checkpoint.key_mapping.dropped) == ("hf", ())
    assert ours.out_indices == blocks
    assert_same_logits(theirs, ours)


@pytest.mark.parametrize(("indices", "blocks"), [([1, 2, 3, 5], "-1, 0, 1, 3"), ([2, 3, 4, 6], None)])
def test_the_release_s_numbers_of_blocks_are_told_to_mean_others_in_transformers(tmp_path, indices, blocks):
    hf_segmenter(tmp_path / "hf", 7, **EVERY, out_indices=indices)
    told = [each for each in open_model(str(tmp_path / "hf")).warnings if "out_indices" in each]
    assert len(told) == (blocks is not None)
    assert all(f"of blocks {blocks} (from 0)" in each and "take blocks 1, 2, 3, 5:" in each for each in told)


def change(path: Path, **settings: Any) -> None:
    """Changes a JSON file; None removes the key."""
    document = json.loads(path.read_text()) if path.exists() else {}
    document |= settings
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"out_indices": [1, 2, 3]}, r"out_indices = \[1, 2, 3\]: the head takes 4 hidden states"),
        ({"out_indices": [1, 2, 3, 5]}, "transformers takes -5 to 4 of 4 blocks"),
        ({"out_indices": [4, 3, 2, 1]}, "in ascending order only"),
        ({"out_indices": [1, 2, 2, 3]}, "in ascending order only"),
        ({"out_indices": "1234"}, "out_indices = '1234'"),
        ({"out_indices": [1, 2, 3, 4.0]}, "out_indices"),
        ({"out_features": ["stage1", "stage2", "stage3", "stage9"]}, "out_features"),
        ({"out_indices": [1, 2, 3, 4], "out_features": ["stem", "stage1", "stage2", "stage3"]}, "its out_features are"),
        ({"pool_scales": [1, 2, 3]}, r"pool_scales = \[1, 2, 3\]: the head has 4 pooling modules"),
        ({"pool_scales": [1, 2, 3, 0]}, "pool_scales"),
        ({"auxiliary_loss_weight": "much"}, "auxiliary_loss_weight = 'much'"),
        ({"semantic_loss_ignore_index": 1.5}, "semantic_loss_ignore_index = 1.5"),
        ({"hidden_act": "relu"}, "relu"),
    ],
)
def test_stated_values_that_cannot_be_met_are_refused_by_name(tmp_path, settings, said):
    hf_segmenter(tmp_path / "hf", 7, out_features=None)
    change(tmp_path / "hf/config.json", **{"out_features": None} | settings)
    with pytest.raises(StorageError, match=said):
        open_model(str(tmp_path / "hf"))


def test_blocks_of_old_and_lacking_configs(tmp_path):
    hf_segmenter(tmp_path / "hf", 7, **EVERY)
    change(tmp_path / "hf/config.json", out_indices=None, out_features=None, segmentation_indices=[2, 3, 4, 5])
    assert open_model(str(tmp_path / "hf")).segmenter.out_indices == (0, 1, 2, 3)
    change(tmp_path / "hf/config.json", segmentation_indices=None)
    lacking = open_model(str(tmp_path / "hf"))
    assert lacking.segmenter.out_indices == RELEASED_BLOCKS
    assert any("blocks 1, 2, 3, 5 (from 0), as in the release" in warning for warning in lacking.warnings)


def test_bins_that_nothing_states_are_refused(tmp_path):
    hf_segmenter(tmp_path / "hf", 7, pool_scales=[1, 2, 3])
    change(tmp_path / "hf/config.json", pool_scales=None)
    with pytest.raises(StorageError, match="pools over 3 scales, and nothing says which"):
        open_model(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("processor", "model", "labels", "expected"),
    [
        ({}, {}, 7, (255, False)),
        ({}, {}, 150, (255, True)),  # ADE20K's number of classes
        ({"do_reduce_labels": False}, {}, 150, (255, False)),
        ({"do_reduce_labels": True}, {}, 7, (255, True)),
        ({"reduce_labels": True}, {}, 7, (255, True)),  # name in old versions
        ({}, {"semantic_loss_ignore_index": 3}, 7, (3, False)),
        ({"do_reduce_labels": True}, {"semantic_loss_ignore_index": 3}, 7, (4, True)),  # 4 in the file is 3 by then
        ({}, {"semantic_loss_ignore_index": -100}, 7, (255, False)),  # in no mask of 8 bits
    ],
)
def test_labels_are_read_as_the_processor_and_the_loss_read_them(tmp_path, processor, model, labels, expected):
    hf_segmenter(tmp_path / "hf", labels, **model)
    change(tmp_path / "hf/preprocessor_config.json", **processor)
    mapping = label_mapping_of(open_model(str(tmp_path / "hf")))
    assert (mapping.ignore_index, mapping.reduce_zero_label) == expected


def test_inspect_tells_blocks_and_what_the_head_has_of_its_own(tmp_path):
    hf_segmenter(tmp_path / "hf", 7, **EVERY, out_indices=[2, 3, 5, 6], use_auxiliary_head=False, pool_scales=[1, 4])
    architecture = inspect(InspectConfig(ref=str(tmp_path / "hf"))).architecture
    assert architecture["head"] == "upernet"
    assert (architecture["blocks"], architecture["pools"], architecture["auxiliary"]) == ([0, 1, 3, 4], [1, 4], None)


def released(folder: Path, classes: int = 7, **beside: Any) -> tuple[Path, Segmenter]:
    """A file as mmseg writes it, and the segmenter in it."""
    hf_segmenter(folder / "hf", classes)
    ours, _ = load_segmenter(open_model(str(folder / "hf")))
    ours.out_indices = (0, 1, 2, 3)
    torch.save({"state_dict": as_released(ours), **beside}, folder / "upernet.pth")
    return folder / "upernet.pth", ours


def test_released_segmenter_gives_its_own_logits(tmp_path):
    path, ours = released(tmp_path, meta={"epoch": 1})
    again, checkpoint = load_segmenter(open_model(str(path)))
    assert (checkpoint.kind, checkpoint.outputs) == ("segmenter", 7)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images)[0], ours(images)[0])


def test_released_segmenter_takes_images_of_imagenet_s_mean(beit, tmp_path):
    path, _ = released(tmp_path)
    assert open_model(str(path)).normalization == IMAGENET
    ended = beit("inspect", path, "--json")
    assert (ended.code, ended.lines[0]["normalization"]) == (0, {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])})
    assert ended.lines[0]["assumed"] == [
        "images normalised by ImageNet mean and std", "classes are named by their numbers"
    ]  # fmt: skip
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / "a.png")
    said = beit("predict", path, tmp_path / "a.png", "-o", tmp_path / "out", "--workers", 0)
    assert (said.code, "images normalised by ImageNet mean and std" in said.err) == (0, True)


MMSEG_0 = """
img_norm_cfg = dict(
    mean=[127.5, 102.0, 76.5], std=[51.0, 25.5, 127.5], to_rgb=True)
model = dict(backbone=dict(type='BEiT', out_indices=[0, 1, 1, 2]), decode_head=dict(pool_scales=(1, 2, 3, 7)))
train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='Normalize', mean=[1, 2, 3])]
"""
MMSEG_1 = """
data_preprocessor = dict(
    bgr_to_rgb=True,
    mean=[
        127.5,
        102.0,
        76.5,
    ],
    size=(640, 640), std=[51.0, 25.5, 127.5], type='SegDataPreProcessor')
"""


def test_what_mmseg_notes_beside_the_weights_is_read(tmp_path):
    names = tuple("abcdefg")
    path, _ = released(tmp_path, meta={"config": MMSEG_0, "CLASSES": names, "PALETTE": [[0, 0, 0]] * 7})
    model, old = load_segmenter(open_model(str(path)))
    assert (old.normalization, old.classes) == (((0.5, 0.4, 0.3), (0.2, 0.1, 0.5)), names)
    assert (model.out_indices, old.assumed) == ((0, 1, 1, 2), ())
    assert [module[0].output_size for module in model.decode_head.psp_modules] == [1, 2, 3, 7]
    assert label_mapping_of(old).reduce_zero_label
    path, _ = released(tmp_path, meta={"cfg": MMSEG_1, "dataset_meta": {"classes": names, "palette": [[0, 0, 0]]}})
    new = open_model(str(path))
    assert (new.normalization, new.classes) == (old.normalization, names)
    assert new.segmenter.out_indices == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "reduced"),
    [
        ("", True),
        ("reduce_zero_label=False", False),
        ("reduce_zero_label=False, reduce_zero_label = True", True),
    ],
)
def test_150_classes_are_ade20k_s_unless_mmseg_says_otherwise(tmp_path, text, reduced):
    path, _ = released(tmp_path, classes=150, meta={"config": text})
    assert label_mapping_of(open_model(str(path))).reduce_zero_label == reduced


def test_a_model_of_images_in_another_order_of_colours_is_refused(tmp_path):
    path, _ = released(tmp_path, meta={"config": MMSEG_0.replace("to_rgb=True", "to_rgb=False")})
    with pytest.raises(StorageError, match="to_rgb = False"):
        open_model(str(path))


def test_transformers_segmenter_takes_the_images_of_its_processor(tmp_path):
    hf_segmenter(tmp_path / "hf", 7)
    assert open_model(str(tmp_path / "hf")).normalization == INCEPTION  # BeitImageProcessor's default
    transformers.BeitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path / "hf"
    )
    assert open_model(str(tmp_path / "hf")).normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 40.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 0.5, 2.0]},
        {"image_std": [0.2, 0.3, 0.4]},
        {"do_rescale": False},
    ],
)
def test_pixels_are_those_of_the_processor_in_whatever_range_it_works(tmp_path, settings):
    hf_segmenter(tmp_path / "hf", 7)
    processor = transformers.BeitImageProcessor(do_resize=False, **settings)
    processor.save_pretrained(tmp_path / "hf")
    pixels = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = processor(images=[pixels], return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in open_model(str(tmp_path / "hf")).normalization)
    torch.testing.assert_close((pixels / 255 - mean) / std, theirs, rtol=1e-5, atol=1e-5)


def test_names_of_a_backbone_are_none_of_a_head():
    assert head_name("backbone.blocks.0.norm1.weight") is None
    assert head_name("head.weight") is None


@pytest.mark.parametrize(("labels", "numbers"), [(150, (1, 150)), (7, (0, 6))])
def test_predict_takes_them_and_numbers_ade20k_s_classes_from_one(beit, tmp_path, labels, numbers):
    hf_segmenter(tmp_path / "hf", labels)
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(picture)
    ended = beit("predict", tmp_path / "hf", picture, "-o", tmp_path / "out", "--workers", 0)
    assert ended.code == 0, ended.err
    with Image.open(Path(ended.lines[0]["output"])) as mask:
        values = np.asarray(mask)
    assert values.shape == (70, 90)
    assert numbers[0] <= values.min() <= values.max() <= numbers[1]
    assert ended.lines[0]["classes"].keys() == {str(value - numbers[0]) for value in np.unique(values)}
