"""Parquet files: as the datasets library writes them and as others do, read by the row group, with their labels."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.loading.sampler import KeyedPermutation, WindowedPermutation, training_order
from beitcli.data.sources.base import Blocks, Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.formats.parquet import ParquetSource
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import configuration_of, split_of
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CenterTransform
from beitcli.errors import BadImage, DataError, UsageError


def picture(shade: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, rows: int = 6, first: int = 0, group: int = 2, **columns: Any) -> Path:
    """Pictures of shades `first`, `first` + 1, ...; `group` of them in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(first + number), "path": "same.png"} for number in range(rows)]
    parquet.write_table(pa.table({"image": images} | columns), path, row_group_size=group)
    return path


def shades(source: Source) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]


def labels(source: Source) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


# What is in a file


@pytest.mark.filterwarnings("default")  # the datasets library's own
def test_parquet_of_the_datasets_library_keeps_its_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ox", "cat", "ant"]),
        }
    )
    images = [{"bytes": picture(shade), "path": f"{shade}.png"} for shade in range(4)]
    rows = {"id": [7, 7, 7, 7], "image": images, "label": [1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    source = open_data([str(tmp_path / "x.parquet")], labelled=True)
    assert isinstance(source, ParquetSource)
    assert source.classes == ("ox", "cat", "ant")
    assert labels(source) == [1, 0, 1, 0]
    assert shades(source) == [0, 1, 2, 3]
    assert source.path(3) == f"{tmp_path}/x.parquet/3"


def test_parquet_of_plain_bytes_and_named_labels(tmp_path: Path) -> None:
    table = pa.table({"picture": [picture(1), picture(2), picture(3)], "label": ["dog", "ant", "dog"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    source = open_data([str(tmp_path / "x.parquet")], labelled=True)
    assert (source.classes, labels(source), shades(source)) == (("ant", "dog"), [1, 0, 1], [1, 2, 3])


def test_parquet_integers_without_names_are_ordered_by_number(tmp_path: Path) -> None:
    source = open_data([str(write(tmp_path / "x.parquet", 3, label=[10, 9, 10]))], labelled=True)
    assert (source.classes, labels(source)) == (("9", "10"), [1, 0, 1])


def test_parquet_without_labels_has_no_classes(tmp_path: Path) -> None:
    for columns in ({}, {"label": [0.5] * 6}, {"label": [1, None, 1, 1, 1, 1]}):
        path = str(write(tmp_path / "x.parquet", **columns))
        assert open_data([path]).classes is None
        with pytest.raises(DataError, match=r"no labels|no whole number|1 of the 6 images .*x\.parquet/1'"):
            open_data([path], labelled=True)


def test_parquet_rows_without_an_image_are_bad_images(tmp_path: Path) -> None:
    images = [
        {"bytes": picture(1), "path": None},
        {"bytes": None, "path": "a.png"},
        None,
        {"bytes": b"no", "path": None},
    ]
    parquet.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    source = open_data([str(tmp_path / "x.parquet")])
    assert source.image(0).size == (8, 6)
    with pytest.raises(BadImage, match=r"not embedded, and its file 'a\.png': no such file"):
        source.image(1)
    with pytest.raises(BadImage, match="no image in its row"):
        source.image(2)
    with pytest.raises(BadImage, match="not an image"):
        source.image(3)


def test_parquet_without_an_image_column_names_its_columns(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no images; its columns: text, n"):
        open_data([str(tmp_path / "x.parquet")])
    parquet.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="several columns that may be the images: a, b"):
        open_data([str(tmp_path / "x.parquet")])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100])
def test_parquet_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet' cannot be read as parquet"):
        open_data([str(tmp_path / "x.parquet")])


def test_parquet_of_no_rows_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no rows"):
        open_data([str(tmp_path / "x.parquet")])


@settings(max_examples=60, deadline=None)
@example(place=424, value=128)  # a label that is no UTF-8
@given(place=st.integers(0, 10_000), value=st.integers(1, 255))
def test_parquet_damaged_never_ends_in_a_bug(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    path = write(tmp_path_factory.mktemp("damaged") / "x.parquet", label=list("ababab"))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= value
    path.write_bytes(content)
    try:
        source = open_data([str(path)])
    except DataError:
        return
    for index in range(len(source)):
        try:
            assert source.image(index).mode == "RGB"
        except BadImage:
            continue


def test_parquet_gone_after_opening_is_a_bad_image(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet")
    source = open_data([str(path)])
    path.unlink()
    with pytest.raises(BadImage, match="row group cannot be read"):
        source.read(0)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="needs the library pyarrow") as error:
        open_data([str(path)])
    assert "pip install 'pyarrow>=17'" in error.value.hint


# Several files


def test_parquet_files_by_folder_glob_and_braces_are_the_same(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", first=6 * number, label=[f"{'abc'[number]}"] * 6)
    for references in ([str(tmp_path)], [f"{tmp_path}/*.parquet"], [f"{tmp_path}/{{0..2}}.parquet"]):
        source = open_data(references, labelled=True)
        assert shades(source) == list(range(18))
        assert (source.classes, labels(source)) == (("a", "b", "c"), [0] * 6 + [1] * 6 + [2] * 6)
        assert source.path(7) == f"{tmp_path}/1.parquet/1"


def test_parquet_folder_splits_follow_the_names(tmp_path: Path) -> None:
    for number, name in enumerate(["train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"]):
        write(tmp_path / "data" / f"{name}.parquet", 1, first=number)
    root = str(tmp_path)
    assert shades(open_data([root])) == [0]
    assert shades(open_data([root], role="eval")) == [1]
    assert shades(open_data([root], split="val")) == [1]
    assert shades(open_data([root], split="test")) == [2]
    assert shades(open_data([f"{root}/data/*.parquet"])) == [2, 0, 1]
    assert shades(open_data([f"{root}/data/*.parquet"], split="train")) == [0]
    with pytest.raises(DataError, match="no split 'extra': it has test, train, validation"):
        open_data([root], split="extra")
    (tmp_path / "data" / "validation-00000-of-00001.parquet").unlink()
    assert shades(open_data([root], role="eval")) == [2]


@pytest.mark.parametrize(
    ("path", "split", "configuration"),
    [
        ("data/train-00000-of-00041.parquet", "train", None),
        ("data/unlabelled_b-00000-of-00041-0123abc.parquet", "unlabelled_b", None),
        ("en/validation/0000.parquet", "validation", "en"),
        ("default/train/0000.parquet", "train", "default"),
        ("val.parquet", "validation", None),
        ("my_dev_set.parquet", "validation", None),
        ("training/x.parquet", "train", None),
        ("trained.parquet", None, None),
        ("a/b/x.parquet", None, "a"),
    ],
)
def test_split_and_configuration_of_a_path(path: str, split: str | None, configuration: str | None) -> None:
    assert (split_of(path), configuration_of(path)) == (split, configuration)


def test_parquet_and_others_concatenate(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", label=list("cacaca"))
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / "b" / "1.png").write_bytes(picture(99))
    source = open_data([str(path), str(tmp_path / "data")], labelled=True)
    assert isinstance(source, Concat)
    assert (source.classes, labels(source)) == (("a", "b", "c"), [2, 0, 2, 0, 2, 0, 1])
    assert shades(source)[-2:] == [5, 99]
    assert len(source.fingerprint()) == 64


def test_parquet_fingerprint_follows_rows_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    found = [
        open_data([str(write(path, rows, label=list(text)))]).fingerprint()
        for rows, text in ((4, "abab"), (4, "abab"), (4, "abba"), (3, "aba"))
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


# Row groups


def test_parquet_reads_a_row_group_once_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.data.sources.formats.parquet._MOST_TOGETHER", 2)
    source = open_data([str(write(tmp_path / "x.parquet"))])
    assert isinstance(source, ParquetSource)
    blocks = source.blocks()
    assert (blocks.lengths.tolist(), blocks.together) == ([2, 2, 2], 2)
    read: list[int] = []
    read_group: Callable[[int], Any] = source._read_group
    monkeypatch.setattr(source, "_read_group", lambda group: read.append(group) or read_group(group))
    for index in (0, 1, 2, 0, 4, 1, 3):
        assert source.image(index).getpixel((0, 0))[0] == index
    assert read == [0, 1, 2, 1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests' threads may live
def test_parquet_is_read_alike_after_fork_and_pickle(tmp_path: Path) -> None:
    source = open_data([str(write(tmp_path / "x.parquet"))])
    assert shades(source) == list(range(6))
    assert shades(pickle.loads(pickle.dumps(source))) == list(range(6))
    child = os.fork()
    if child == 0:
        source._held.clear()  # type: ignore[attr-defined]
        os._exit(0 if shades(source) == list(range(6)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_trains_and_resumes_alike_whatever_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("beitcli.data.sources.formats.parquet._MOST_TOGETHER", 2)
    source = Subset(open_data([str(write(tmp_path / "x.parquet", 20))]), np.array([*range(5), *range(7, 20)]))

    def run(images_seen: int, steps: int) -> list[int]:
        part = StreamPart(seed=3, batch_size=4, images_seen=images_seen, steps=steps)
        batches = training_batches(source, CenterTransform(size=8), part, workers=workers)
        return [index for batch in batches for index in batch.indices]

    whole = run(0, 9)
    assert whole == training_order(source, 3).indices(np.arange(36))[1].tolist()
    assert sorted(whole[:18]) == sorted(whole[18:]) == list(range(18))
    assert whole[:18] != whole[18:]
    assert run(12, 6) == whole[12:]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    together=st.integers(1, 5),
    seed=st.integers(0, 1 << 40),
    epoch=st.integers(0, 1 << 30),
)
def test_block_order_is_a_permutation_that_keeps_to_windows(
    lengths: list[int], together: int, seed: int, epoch: int
) -> None:
    order = WindowedPermutation(Blocks(np.array(lengths), together), seed)
    total = sum(lengths)
    positions = np.arange(total) + epoch * total
    epochs, indices = order.indices(positions)
    assert set(epochs.tolist()) == {epoch}
    assert sorted(indices.tolist()) == list(range(total))
    block_of = np.repeat(np.arange(len(lengths)), lengths)[indices]
    seen: list[int] = []
    for block in block_of.tolist():
        if block not in seen:
            seen.append(block)
    windows = [set(seen[start : start + together]) for start in range(0, len(seen), together)]
    place = 0
    for window in windows:
        count = sum(lengths[block] for block in window)
        assert set(block_of[place : place + count].tolist()) == window
        place += count
    shuffled = np.random.default_rng(0).permutation(positions)
    assert np.array_equal(order.indices(shuffled)[1], indices[shuffled - epoch * total])


def test_block_order_differs_by_epoch_and_seed() -> None:
    blocks = Blocks(np.full(20, 5), 4)
    orders = [WindowedPermutation(blocks, seed).indices(np.arange(100) + 100 * epoch)[1].tolist() for seed, epoch in
              ((0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 3


def test_order_is_by_blocks_only_where_a_process_cannot_hold_all(tmp_path: Path) -> None:
    assert isinstance(training_order(open_data([str(write(tmp_path / "x.parquet"))]), 0), KeyedPermutation)


def test_blocks_of_parts_and_of_several_sources(tmp_path: Path) -> None:
    source = open_data([str(write(tmp_path / "x.parquet"))])
    part = Subset(source, np.array([0, 1, 3, 5])).blocks()
    assert part is not None
    assert part.lengths.tolist() == [2, 1, 1]
    assert Subset(source, np.array([3, 1])).blocks() is None
    (tmp_path / "data").mkdir()
    for number in range(300):
        (tmp_path / "data" / f"{number}.png").write_bytes(b"")
    both = Concat([source, open_data([str(tmp_path / "data")])]).blocks()
    assert both is not None
    assert both.lengths.tolist() == [2, 2, 2, 256, 44]
    assert open_data([str(tmp_path / "data")]).blocks() is None
