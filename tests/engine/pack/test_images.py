"""What a pack stores of odd images, of pages, and of images that are named in lists and on stdin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import split_of
from beitcli.data.sources.subset import Subset
from beitcli.engine.pack.encoding import Encoding
from beitcli.engine.pack.plan import Packing, plan_shards
from beitcli.engine.pack.writing import write_shard
from beitcli.errors import UsageError
from tests.conftest import Ended, save_picture
from tests.helpers.packs import contents, packed

Beit = Callable[..., Ended]


def noise(*shape: int, most: int = 255, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, shape, np.uint8 if most == 255 else np.uint16)


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """A JPEG that lies on its side, one of four inks, a PNG with alpha, and gray of 12 of 16 bits."""
    folder = tmp_path / "odd"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 40, 3)).save(folder / "0-exif.jpg", exif=exif)
    Image.fromarray(noise(20, 40, 4), "CMYK").save(folder / "1-cmyk.jpg")
    Image.fromarray(noise(20, 40, 4)).save(folder / "2-alpha.png")
    Image.fromarray(noise(20, 40, most=4095)).save(folder / "3-deep.png")
    return folder


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("intensity", [None, "0,4095"])
def test_odd_images_have_the_pixels_of_the_files(odd_images: Path, tmp_path: Path, intensity: str | None):
    report = packed(odd_images, tmp_path / "raw", encode="raw", intensity_range=intensity)
    assert (report.images, report.bad) == (4, 0)
    pack_of_files = contents(open_data([str(odd_images)]))
    assert contents(open_data([str(tmp_path / "raw")]))[:3] == pack_of_files[:3]
    deep = open_data([str(tmp_path / "raw")]).pixels(3)[:, :, 0].astype(int)
    white = 65535 if intensity is None else 4095
    assert np.abs(deep - np.round(noise(20, 40, most=4095) * 255.0 / white)).max() <= 1


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_odd_images_are_upright_and_coloured_as_jpeg(odd_images: Path, tmp_path: Path):
    report = packed(odd_images, tmp_path / "out")
    assert report.copied == 2
    files, shards = (open_data([str(each)]) for each in (odd_images, tmp_path / "out"))
    assert contents(shards)[:2] == contents(files)[:2]
    shrunk = packed(odd_images, tmp_path / "shrunk", short_side=16)
    assert shrunk.copied == 0
    shapes = [open_data([str(tmp_path / "shrunk")]).pixels(index).shape for index in range(4)]
    assert shapes == [(32, 16, 3), (16, 32, 3), (16, 32, 3), (16, 32, 3)]


def test_each_page_is_an_image(tmp_path: Path):
    (tmp_path / "data").mkdir()
    pages = [Image.fromarray(noise(20 + seed, 30, 3, seed=seed)) for seed in range(3)]
    pages[0].save(tmp_path / "data" / "stack.tif", save_all=True, append_images=pages[1:])
    assert packed(tmp_path / "data", tmp_path / "first", encode="raw").images == 1
    assert packed(tmp_path / "data", tmp_path / "all", encode="raw", pages="all").images == 3
    source = open_data([str(tmp_path / "all")])
    assert all(np.array_equal(source.pixels(index), np.array(pages[index])) for index in range(3))


def test_masks_are_refused_with_all_pages_too(scenes: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="has masks in"):
        packed(scenes, tmp_path / "out", pages="all")


def test_a_list_keeps_its_order_and_classes(split_folder: Path, tmp_path: Path):
    files = sorted(split_folder.rglob("*.jpg"), reverse=True)[:5]
    (tmp_path / "list.tsv").write_text("".join(f"{file}\tclass {n % 2}\n" for n, file in enumerate(files)))
    packed(tmp_path / "list.tsv", tmp_path / "out", encode="raw")
    listed, shards = (open_data([str(each)]) for each in (tmp_path / "list.tsv", tmp_path / "out"))
    assert contents(shards) == contents(listed)
    assert shards.classes == ("class 0", "class 1")


def test_stdin_is_packed_and_the_data_beside_it_keep_their_splits(split_folder: Path, tmp_path: Path, beit: Beit):
    more = [save_picture(tmp_path / "more" / f"{number}.png", (90, 50, 60), 50 + number) for number in range(2)]
    paths = "".join(f"{path}\n" for path in more).encode()
    for words, splits in (
        ((), {"all": 2}),
        ((split_folder,), {"train": 14, "validation": 4}),
        ((split_folder, split_folder), {"train": 26, "validation": 8}),
    ):
        out = tmp_path / f"out-{len(words)}"
        ended = beit("pack", *words, "-", "-o", out, "--workers", 0, "--json", stdin=paths)
        assert (ended.code, ended.lines[0]["splits"]) == (0, splits)


def test_a_split_has_its_usual_name_whatever_it_is_called(split_folder: Path, tmp_path: Path):
    assert packed(split_folder, tmp_path / "out", split="val").splits == {"validation": 4}
    assert [each.name for each in tmp_path.glob("out/*.tar")] == ["validation-00000-of-00001.tar"]
    assert len(open_data([str(tmp_path / "out")], split="val")) == 4


class Numbers(Source):
    """As many images as are said, none of which is read."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> bytes:
        raise NotImplementedError


def test_shards_beyond_five_digits_are_in_order_and_of_their_split():
    names = [shard.name for shard in plan_shards({"odd": Numbers(100_001)}, 1)]
    assert names == sorted(names)
    assert names[-1] == "odd-100000-of-100001.tar"
    assert split_of(names[-1]) == "odd"
    assert plan_shards({None: Numbers(3)}, 2)[1].name == "images-00001-of-00002.tar"


@pytest.mark.parametrize("classes", [["a", "b", "c", "a"], ["a", "b", "c", 7], "abc"])
def test_classes_of_a_manifest_that_are_no_names_or_double_are_not_taken(
    split_folder: Path, tmp_path: Path, classes: object
):
    packed(split_folder, tmp_path / "out", split="train")
    manifest = json.loads((tmp_path / "out" / "pack.json").read_text())
    manifest["splits"]["train"]["classes"] = classes
    (tmp_path / "out" / "pack.json").write_text(json.dumps(manifest))
    assert open_data([str(tmp_path / "out")]).classes == ("a", "b", "c")


class Announced(Subset):
    """Notes which images are announced, and which are read."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, np.arange(len(source)))
        self.announced: set[int] = set()
        self.reads: list[int] = []

    def prefetch(self, indices: np.ndarray) -> None:
        self.announced.update(indices.tolist())

    def read(self, index: int) -> bytes:
        assert index in self.announced
        self.reads.append(index)
        return super().read(index)


def test_a_shard_announces_what_it_reads_and_nothing_of_others(split_folder: Path, tmp_path: Path):
    source = Announced(open_data([str(split_folder)]))
    packing = Packing((source,), ("cls",), Encoding("raw"), tmp_path)
    shard = plan_shards({"train": source}, 5)[1]
    write_shard(packing, shard)
    assert source.announced == set(source.reads) == set(range(5, 10))
