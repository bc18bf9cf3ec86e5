"""Which files of a folder are images, what is told of the others, and folders that hold shards beside images."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from beitcli.data import decode
from beitcli.data.decoding import heif
from beitcli.data.sources.base import Source
from beitcli.data.sources.files import EXTENSIONS, PackedNames, is_image_name
from beitcli.data.sources.formats import _shards_below
from beitcli.data.sources.left_aside import LeftAside
from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError


def picture(shade: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(file, kind)
    return file.getvalue()


def put(root: Path, *names: str, content: bytes | None = None) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number) if content is None else content)
    return root


def put_tar(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))


def put_parquet(path: Path, labels: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), path)


def opened(path: Path, **options: object) -> tuple[Source, list[str]]:
    """The source, and the remarks on the way."""
    told: list[str] = []
    source = open_data([str(path)], on_progress=lambda *event: None if event[3] else told.append(event[0]), **options)
    return source, [each for each in told if each.startswith("'")]


# Endings


def test_every_ending_that_pillow_decodes_here_is_an_image() -> None:
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in decode._FORMATS}
    assert known <= {f".{ending}" for ending in EXTENSIONS}
    assert not {ending for ending in EXTENSIONS if f".{ending}" not in known} - {
        "mpo",
        "pnm",
        "avif",
        "avifs",
        *heif.ENDINGS,
    }


KINDS = {"jfif": "JPEG", "JPE": "JPEG", "mpo": "MPO", "apng": "PNG", "pbm": "PPM", "Pnm": "PPM", "pfm": "PPM"}
KINDS |= {"jp2": "JPEG2000", "j2k": "JPEG2000", "AVIF": "AVIF"}
BUILT_WITH = {"jp2": "jpg_2000", "j2k": "jpg_2000", "AVIF": "avif"}


@pytest.mark.parametrize("ending", KINDS)
def test_files_of_rarer_endings_are_classes_and_decode(tmp_path: Path, ending: str) -> None:
    if ending in BUILT_WITH and not features.check(BUILT_WITH[ending]):
        pytest.skip("not in this build of Pillow")
    file = io.BytesIO()
    mode = {"pbm": "1", "pfm": "F"}.get(ending, "RGB")
    values = Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).convert(mode)
    values.save(file, KINDS[ending])
    put(tmp_path, "cat/1.png", "dog/1.jpg")
    put(tmp_path, f"owl/1.{ending}", content=file.getvalue())
    source, told = opened(tmp_path, labelled=True)
    assert (source.classes, told) == (("cat", "dog", "owl"), [])
    assert source.image(2).size == (16, 16)
    alone = open_data([str(tmp_path / f"owl/1.{ending}")])  # also by itself
    assert alone.image(0).mode == "RGB"


def test_what_is_left_aside_by_its_ending_is_counted_and_told(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/2.cr2", "dog/1.CR2", "dog/notes.txt", "dog/IMG_0001", ".DS_Store", "dog/2.png")
    put(tmp_path, "a.x1", "a.x2", "b.x2", "a.x3", "a.x4", "a.x5", "v1.2-final version")
    source, told = opened(tmp_path)
    text = "11 files not read (2 .cr2, 2 .x2, 1 .txt, 1 .x1, 1 .x3, 2 without an ending, 2 of other endings)"
    assert (len(source), told) == (2, [f"'{tmp_path}': {text}."])
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"No images below .* it holds 2 \.cr2") as error:
        open_data([str(tmp_path)])
    assert error.value.exit_code == 3


def test_a_kept_listing_tells_what_it_leaves_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("beitcli.data.sources.index_cache.SETTLED_NS", -1_000_000_000)
    root = put(tmp_path / "data", *(f"{number:03d}.png" for number in range(256)), "x.cr2")
    first = opened(root)[1]
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 1
    assert opened(root)[1] == first == [f"'{root}': 1 file not read (.cr2)."]
    monkeypatch.setattr("beitcli.data.sources.formats._folder_listing._ABOUT", {"folder": 1})
    assert len(opened(root)[0]) == 256  # an index of another version is built again
    (root / "y.cr2").write_bytes(b"")
    assert opened(root)[1] == [f"'{root}': 2 files not read (.cr2)."]


def test_endless_kinds_of_endings_take_no_memory() -> None:
    aside = LeftAside()
    for number in range(5000):
        aside.add_file(f"part.{number}".encode())
    assert len(aside.counts) == 1001
    assert sum(aside.counts.values()) == 5000
    assert LeftAside.of_arrays(aside.arrays()).text() == aside.text()
    assert LeftAside.of_arrays(LeftAside().arrays()).text() == ""
    assert len(PackedNames([])) == 0
    assert not is_image_name(b"png")


def test_list_and_annotation_files_count_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "1.PNG", "2.Jpg")
    (tmp_path / "LIST.TXT").write_text("1.PNG\tcat\n2.Jpg\tdog\n")
    assert open_data([str(tmp_path / "LIST.TXT")], labelled=True).classes == ("cat", "dog")
    assert len(open_data([str(tmp_path / "1.PNG")])) == 1


# Shards beside images


def test_a_cloned_repository_is_its_shards_and_not_its_logo(tmp_path: Path) -> None:
    put_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ["cat", "dog"] * 3)
    put_parquet(tmp_path / "data" / "test-00000-of-00001.PARQUET", ["cat", "dog"])
    put(tmp_path, "assets/logo.png", "docs/a.png")
    put(tmp_path, "README.md", content=b"# data")
    source, told = opened(tmp_path, labelled=True)
    assert (len(source), source.classes, source.splits) == (6, ("cat", "dog"), {"train", "test"})
    assert told[0] == f"'{tmp_path}': reading the 8 images in 2 .parquet files, not its 2 images outside of them."
    assert len(opened(tmp_path, split="test")[0]) == 2
    with pytest.raises(DataError, match="no split 'nonsense': it has test, train"):
        open_data([str(tmp_path)], split="nonsense")


def test_tar_shards_win_over_a_preview_and_are_found_alone(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        put_tar(tmp_path / "shards" / f"{split}-{number:06d}.TAR", f"{number}a.png", f"{number}b.png")
    source, told = opened(tmp_path)
    assert (len(source), source.splits) == (2, {"train", "validation"})
    assert "reading split train, not validation" in told[0]
    assert os.path.basename(open_data([str(tmp_path)], role="eval").path(0)) == "1a.png"
    put(tmp_path, "preview.png")
    source, told = opened(tmp_path)
    assert len(source) == 2
    assert told[0] == f"'{tmp_path}': reading the 4 images in 2 .tar files, not its 1 image outside of them."


def test_images_win_over_a_smaller_shard_and_that_is_told(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)))
    put_tar(tmp_path / "backup.tar", "cat/0.png", "dog/0.png")
    source, told = opened(tmp_path, labelled=True)
    assert (len(source), source.classes) == (6, ("cat", "dog"))
    assert told == [
        f"'{tmp_path}': reading its 6 images, not the 2 images in 1 .tar file, as '{tmp_path}/backup.tar'.",
        f"'{tmp_path}': 1 file not read (.tar).",
    ]
    (tmp_path / "backup.tar").write_bytes(b"no tar" * 200)
    assert "cannot be read: Shard" in opened(tmp_path)[1][0]
    (tmp_path / "backup.tar").unlink()
    pq.write_table(pa.table({"number": [0], "length": [0.5]}), tmp_path / "metadata.parquet")
    source, told = opened(tmp_path)
    assert len(source) == 6
    assert "1 .parquet file beside its images cannot be read" in told[0]


def test_looking_for_shards_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"cat/{number}.png" for number in range(4)))
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    put_tar(tmp_path / "deep" / "er" / "x.tar", *(f"{number}.png" for number in range(9)))
    assert [(each.ending, each.images) for each in _shards_below.shards_below(str(tmp_path))] == [(".tar", 9)]
    assert _shards_below.shards_below(str(tmp_path), most=3) == []
