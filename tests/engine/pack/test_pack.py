"""`beit pack`: the images, labels, splits and run of the files."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.config.pack import PackConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import Event, Note, Progress
from beitcli.engine.pack.run import pack
from beitcli.engine.pretrain import pretrain
from beitcli.errors import DataError, UsageError
from tests.conftest import Ended, save_picture
from tests.helpers.coco_folder import save_rectangles
from tests.helpers.packs import contents, packed

Beit = Callable[..., Ended]


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_shards_have_the_pixels_labels_and_splits_of_the_files(split_folder: Path, tmp_path: Path, workers: int):
    report = packed(split_folder, tmp_path / "out", encode="raw", shard_images=5, workers=workers)
    assert (report.images, report.splits, report.shards) == (16, {"train": 12, "validation": 4}, 4)
    assert report.level_error is None
    for split in ("train", "val"):
        files, shards = (open_data([str(each)], split=split) for each in (split_folder, tmp_path / "out"))
        assert shards.classes == files.classes
        assert shards.splits == files.splits
        assert contents(shards) == contents(files)
        assert [np.array(shards.image(0)).tolist()] == [np.array(files.image(0)).tolist()]
    lines = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.glob("out/*.tar")}


def test_jpeg_shards_copy_jpeg_and_encode_what_is_not(split_folder: Path, tmp_path: Path):
    report = packed(split_folder, tmp_path / "out")
    assert (report.copied, report.bad) == (13, 0)
    assert report.level_error is not None
    assert 0 < report.level_error < 20  # in levels: the pictures are noise, whose colours are halved in resolution
    with tarfile.open(tmp_path / "out" / "train-00000-of-00001.tar") as tar:
        names = tar.getnames()
        assert names[:4] == ["00000000.jpg", "00000000.cls", "00000001.jpg", "00000001.cls"]
        files = open_data([str(split_folder)])
        for index in range(len(files)):
            member = tar.extractfile(f"{index:08d}.jpg").read()  # type: ignore[union-attr]
            assert (member == files.read(index)) == files.path(index).endswith(".jpg")
            assert Image.open(tar.extractfile(f"{index:08d}.jpg")).format == "JPEG"  # type: ignore[arg-type]


def test_equal_data_make_equal_shards(split_folder: Path, tmp_path: Path):
    for name, workers in (("one", 0), ("two", 2)):
        packed(split_folder, tmp_path / name, short_side=24, shard_images=4, workers=workers)
    for shard in tmp_path.glob("one/*.tar"):
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()


def test_short_side_shrinks_what_is_larger_and_keeps_the_aspect(tmp_path: Path):
    for name, size in {"a": (90, 60), "b": (40, 120), "c": (30, 20), "d": (33, 32)}.items():
        save_picture(tmp_path / "data" / f"{name}.jpg", (90, 50, 60), 1, size)
    report = packed(tmp_path / "data", tmp_path / "out", short_side=32)
    assert report.copied == 2
    source = open_data([str(tmp_path / "out")])
    assert [source.pixels(index).shape[1::-1] for index in range(4)] == [(48, 32), (32, 96), (30, 20), (33, 32)]


def test_a_run_on_raw_shards_is_the_run_on_the_files(split_folder: Path, tmp_path: Path):
    """Order, crops, jitter, masks and held-out images follow from the index in DATA, not from names or formats."""
    packed(split_folder, tmp_path / "raw", encode="raw", shard_images=5)
    flags = {"recipe": "tiny", "tokenizer": "pixels", "target": "pixels", "device": "cpu", "workers": 0, "steps": 3,
             "batch_size": 5, "log_every": 1}  # fmt: skip
    losses = {}
    for name, data in (("files", split_folder), ("raw", tmp_path / "raw")):
        out = tmp_path / f"run-{name}"
        pretrain(resolve(PretrainConfig, flags | {"data": [str(data)], "out": str(out)}).config)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        losses[name] = [metrics["loss"] for line in lines if "loss" in (metrics := json.loads(line))]
    assert len(losses["files"]) >= 3
    assert losses["raw"] == losses["files"]


def test_classes_keep_names_and_numbers_that_a_cls_member_would_change(tmp_path: Path):
    for place, name in enumerate(["007", "10", " odd", "Ä"]):
        save_picture(tmp_path / "data" / name / "x.png", (90, 50, 60), place)
    packed(tmp_path / "data", tmp_path / "out")
    files, shards = (open_data([str(tmp_path / each)]) for each in ("data", "out"))
    assert shards.classes == files.classes
    assert "007" in (shards.classes or ())
    assert [shards.label(index) for index in range(4)] == [files.label(index) for index in range(4)]


def test_classes_keep_the_order_that_parquet_declares_and_those_without_an_image(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    files = [save_picture(tmp_path / f"{number}.png", (90, 50, 60), number).read_bytes() for number in range(3)]
    names = ["zebra", "none of these", "ant"]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [{"bytes": each, "path": None} for each in files], "label": [2, 0, 2]})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    packed(tmp_path / "x.parquet", tmp_path / "out")
    source = open_data([str(tmp_path / "out")])
    assert source.classes == tuple(names)
    assert [source.label(index) for index in range(3)] == [2, 0, 2]


def test_a_bad_image_is_left_out_counted_and_listed(split_folder: Path, tmp_path: Path, beit: Beit):
    bad = split_folder / "train" / "a" / "00.jpg"
    bad.write_bytes((split_folder / "val" / "a" / "0.jpg").read_bytes()[:200])
    ended = beit("pack", split_folder, "-o", tmp_path / "out", "--workers", 0)
    assert (ended.code, ended.lines[0]["bad"], ended.lines[0]["images"]) == (0, 1, 16)
    (line,) = (tmp_path / "out" / "bad-images.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == str(bad)
    strict = beit("pack", split_folder, "-o", tmp_path / "strict", "--workers", 0, "--max-bad", 0)
    assert (strict.code, str(bad) in strict.err) == (3, True)
    with pytest.raises(DataError):
        open_data([str(tmp_path / "strict")])  # it is no DATA before it is finished


def test_masks_and_boxes_are_refused_and_their_images_alone_are_packed(scenes: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="has masks in"):
        packed(scenes, tmp_path / "out")
    shutil.copytree(scenes / "train" / "images", tmp_path / "images")
    assert packed(scenes / "train" / "images", tmp_path / "out").images == 10
    save_rectangles(tmp_path / "boxes", "train", 2, seed=0)
    with pytest.raises(UsageError, match="has boxes in"):
        packed(tmp_path / "boxes", tmp_path / "boxes-out")
    assert packed(tmp_path / "boxes" / "train", tmp_path / "boxes-out").images == 2


def test_sample_is_packed_without_files(tmp_path: Path):
    report = packed("sample", tmp_path / "out", limit=20, encode="raw")
    assert report.splits == {"train": 20, "validation": 20}
    source = open_data([str(tmp_path / "out")], split="val")
    assert source.classes == open_data(["sample"]).classes


def test_other_tools_read_the_shards(split_folder: Path, tmp_path: Path):
    packed(split_folder, tmp_path / "out", encode="raw")
    shard = tmp_path / "out" / "train-00000-of-00001.tar"
    subprocess.run(["tar", "xf", shard, "-C", tmp_path], check=True)
    assert (tmp_path / "00000003.cls").read_text() == "a"
    files = open_data([str(split_folder)])
    assert np.array_equal(np.array(Image.open(tmp_path / "00000003.ppm")), files.pixels(3))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--encode raw --quality 90", "--quality"),
        ("-o -", "-o '-'"),
        ("--short-side 4", "at least 16"),
    ],
    ids=["quality of raw", "stdout", "short side"],
)
def test_settings_without_effect_or_sense_are_refused(
    split_folder: Path, tmp_path: Path, beit: Beit, words: str, said: str
):
    ended = beit("pack", split_folder, "-o", tmp_path / "out", *words.split())
    assert (ended.code, said in ended.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_notes_tell_the_size_before(tmp_path: Path):
    """Of small images most bytes are headers and padding: 300 raw ones of 203 bytes take 635 kB."""
    for number in range(300):
        save_picture(tmp_path / "data" / "ab"[number % 2] / f"{number}.png", (90, 50, 60), number, (8, 8))
    events: list[Event] = []
    config = PackConfig(data=(str(tmp_path / "data"),), output=str(tmp_path / "out"), encode="raw", workers=0)
    report = pack(config, events.append)
    assert 600_000 < report.bytes < 650_000
    assert any(isinstance(event, Note) and event.message.startswith("About 635 kB;") for event in events)


@pytest.mark.parametrize(
    ("suffixes", "settings", "said"),
    [
        (("png",), {}, ["Images are stored as JPEG of quality 95, which changes pixels; --encode raw keeps them."]),
        (("png",), {"encode": "raw"}, []),
        (("jpg",), {}, []),
        (
            ("png", "jpg", "jpg"),
            {"quality": 80},
            ["1 of 3 images looked at is stored as JPEG of quality 80, which changes pixels; --encode raw keeps them."],
        ),
        (
            ("jpg",),
            {"short_side": 16},
            [
                "Images are stored as JPEG of quality 95, which changes pixels; "
                "--encode raw changes no more than their size."
            ],
        ),
    ],
    ids=str,
)
def test_that_pixels_change_is_told_before_the_first_shard(
    tmp_path: Path, suffixes: tuple[str, ...], settings: dict[str, Any], said: list[str]
):
    for number, suffix in enumerate(suffixes):
        save_picture(tmp_path / "data" / f"{number}.{suffix}", (90, 50, 60), number, (30, 20))
    told: list[Event] = []
    config = PackConfig(data=(str(tmp_path / "data"),), output=str(tmp_path / "out"), workers=0, **settings)
    pack(config, told.append)
    begun = next(number for number, event in enumerate(told) if isinstance(event, Progress))
    before = [event.message for event in told[:begun] if isinstance(event, Note)]
    assert [message for message in before if "JPEG of quality" in message] == said
