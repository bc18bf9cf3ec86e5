"""Columns of images in parquet: every binary kind, lists of bytes, and paths of files beside the file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beitcli.data.sources.base import Source
from beitcli.data.sources.formats.parquet import ParquetSource
from beitcli.data.sources.open_data import open_data
from beitcli.errors import BadImage, DataError
from tests.helpers.hub_server import HubServer

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(shade: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def opened(folder: Path, first: Any, column: str = "image", **more: Any) -> Source:
    folder.mkdir(exist_ok=True)
    parquet.write_table(pa.table({column: first} | more), folder / "rows.parquet", row_group_size=3)
    return open_data([str(folder / "rows.parquet")])


def shades(source: Source) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]


def reason(source: Source, index: int) -> str:
    with pytest.raises(BadImage) as error:
        source.read(index)
    return error.value.message


PATHS = {
    "struct": lambda paths: pa.array([{"bytes": None, "path": path} for path in paths], STRUCT),
    "struct of nulls": lambda paths: pa.array([{"bytes": None, "path": path} for path in paths]),
    "struct of paths alone": lambda paths: pa.array([{"path": path} for path in paths]),
    "strings": lambda paths: pa.array(paths),
    "large strings": lambda paths: pa.array(paths, pa.large_string()),
    "views": lambda paths: pa.array(paths, pa.string_view()),
    "dictionary": lambda paths: pa.array(paths).dictionary_encode(),
    "struct of large parts": lambda paths: pa.array(
        [{"bytes": None, "path": path} for path in paths],
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    ),
}


@pytest.mark.parametrize("kind", PATHS)
def test_paths_name_files_absolute_or_beside_the_parquet(tmp_path, monkeypatch, kind):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.png"
    for shade, file in enumerate((folder / "a.png", folder / "deep" / "b.png", elsewhere, folder / "ä c.png")):
        file.write_bytes(picture(shade))
    monkeypatch.chdir(tmp_path)  # paths are not relative to the working directory
    source = opened(folder, PATHS[kind](["a.png", "deep/b.png", str(elsewhere), "deep/../ä c.png"]))
    assert shades(source) == [0, 1, 2, 3]
    monkeypatch.chdir(folder)
    assert shades(open_data(["rows.parquet"])) == [0, 1, 2, 3]


def test_embedded_images_and_paths_may_be_mixed(tmp_path):
    (tmp_path / "b.png").write_bytes(picture(2))
    rows = [{"bytes": picture(1), "path": "gone.png"}, {"bytes": None, "path": "b.png"}, None, {"bytes": None}]
    source = opened(tmp_path, pa.array(rows, STRUCT))
    assert [source.image(index).getpixel((0, 0))[0] for index in (0, 1)] == [1, 2]
    assert [reason(source, index) for index in (2, 3)] == ["no image in its row"] * 2


@pytest.mark.parametrize("kind", ["struct", "strings"])
def test_paths_that_cannot_be_read_are_named(tmp_path, kind):
    (tmp_path / "out.png").write_bytes(picture(1))
    faults = {
        "gone.png": "not embedded, and its file 'gone.png': no such file",
        "/gone/x.png": "not embedded, and its file '/gone/x.png': no such file",
        "../out.png": "its path '../out.png' leads out of the folder of the parquet file",
        "deep/../../out.png": "its path 'deep/../../out.png' leads out of the folder",
        "https://host/a.png": "names the address 'https://host/a.png', and none is fetched",
        "zip://a.png::/x.zip": "names the address 'zip://a.png::/x.zip'",
        "data:image/png;base64,AAAA": "names the address 'data:image/png",
        ".": "a folder, not a file",
        "a\0b.png": "cannot be read",
        "/dev/zero": "a device, pipe or socket",
        "": "no image in its row",
    }
    source = opened(tmp_path / "data", PATHS[kind](list(faults)))
    for index, said in enumerate(faults.values()):
        assert said in reason(source, index)


def test_path_that_is_no_utf8_names_its_file(tmp_path):
    name = b"\xff\xfe.png"
    (tmp_path / "x").mkdir()
    with open(bytes(tmp_path / "x") + b"/" + name, "wb") as file:
        file.write(picture(7))
    strings = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, len(name)], np.int32)), pa.py_buffer(name))
    assert shades(opened(tmp_path / "x", strings)) == [7]


def test_rows_on_the_hub_name_no_files_of_this_machine(tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    written = BytesIO()
    rows = [{"bytes": picture(1), "path": None}, {"bytes": None, "path": str(secret)}, {"bytes": None, "path": "a.png"}]
    parquet.write_table(pa.table({"image": pa.array(rows, STRUCT)}), written)
    for whole in (4_000_000, 0):  # downloaded, and streamed
        monkeypatch.setattr("beitcli.data.sources.formats.hub_parquet._FETCHED_WHOLE", whole)
        with HubServer({"datasets/owner/name": {"data/train.parquet": written.getvalue()}}) as server:
            server.use(monkeypatch, tmp_path / f"cache{whole}")
            source = open_data(["hf://datasets/owner/name"])
            assert source.image(0).getpixel((0, 0))[0] == 1
            assert f"names the file '{secret}', which a data set on the hub cannot hold" in reason(source, 1)
            assert "names the file 'a.png'" in reason(source, 2)


def same_size(*shades: int) -> list[bytes]:
    files = [picture(shade) for shade in shades]
    return [file.ljust(max(map(len, files)), b"\0") for file in files]


BINARY = {
    "binary": lambda files: pa.array(files, pa.binary()),
    "large": lambda files: pa.array(files, pa.large_binary()),
    "fixed": lambda files: pa.array(files, pa.binary(len(files[0]))),
    "views": lambda files: pa.array(files, pa.binary_view()),
    "dictionary": lambda files: pa.array(files, pa.binary()).dictionary_encode(),
    "struct of dictionary": lambda files: pa.StructArray.from_arrays(
        [pa.array(files, pa.binary()).dictionary_encode(), pa.array(["x"] * len(files))], ["bytes", "path"]
    ),
    "list": lambda files: pa.array([list(file) for file in files], pa.list_(pa.uint8())),
    "large list": lambda files: pa.array([list(file) for file in files], pa.large_list(pa.uint8())),
    "list of int64": lambda files: pa.array([list(file) for file in files]),
    "fixed list": lambda files: pa.array([list(file) for file in files], pa.list_(pa.uint8(), len(files[0]))),
    "struct of lists": lambda files: pa.array([{"bytes": list(file)} for file in files]),
}


@pytest.mark.parametrize("kind", BINARY)
def test_images_are_read_from_every_kind_of_bytes(tmp_path, kind):
    source = opened(tmp_path, BINARY[kind](same_size(3, 1, 3, 200, 5)))
    assert shades(source) == [3, 1, 3, 200, 5]


def test_streamed_lists_of_bytes_are_read(tmp_path, monkeypatch):
    written = BytesIO()
    parquet.write_table(pa.table({"image": BINARY["list"](same_size(3, 1))}), written, row_group_size=1)
    monkeypatch.setattr("beitcli.data.sources.formats.hub_parquet._FETCHED_WHOLE", 0)
    with HubServer({"datasets/owner/name": {"data/train.parquet": written.getvalue()}}) as server:
        server.use(monkeypatch, tmp_path)
        assert shades(open_data(["hf://datasets/owner/name"])) == [3, 1]


def test_lists_of_what_is_no_byte_are_bad_images(tmp_path):
    source = opened(tmp_path, pa.array([[1, 300], [1, None], None, []]))
    assert reason(source, 0) == "its list holds 300, no byte"
    assert reason(source, 1) == "its list holds nan, no byte"
    assert reason(source, 2) == "no image in its row"
    assert source.read(3) == b""


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[[1, 2], [3, 4]]]), "its column 'image' is list<element: list<element: int64>>, no encoded files"),
        (pa.array([[0.5]]), "its column 'image' is list<element: double>"),
        (pa.array([None]), "its column 'image' is null"),
        (pa.array([{"array": [1], "path": "a"}]), "its column 'image' is struct<array"),
    ],
)
def test_column_of_something_else_is_refused_with_its_type(tmp_path, column, said):
    with pytest.raises(DataError) as error:
        opened(tmp_path, column)
    assert said in error.value.message
    assert "struct<bytes, path>" in error.value.hint


def test_usual_column_keeps_its_place_beside_new_kinds(tmp_path):
    files = [picture(4)]
    others = {"image": ["a.png"], "hash": pa.array([b"0123"], pa.binary(4)), "tokens": [[1, 2]], "path": ["b.png"]}
    assert shades(opened(tmp_path, files, "jpg", **others, label=pa.array([b"cat"]))) == [4]
    with pytest.raises(DataError, match="several columns that may be the images: path, file_name"):
        opened(tmp_path, ["a.png"], "path", file_name=["a.png"])
    with pytest.raises(DataError, match="has no images; its columns: caption, tokens"):
        opened(tmp_path, ["a cat"], "caption", tokens=[[1]])


def test_column_of_nulls_is_bad_images(tmp_path):
    source = opened(tmp_path, pa.array([None] * 4, STRUCT))
    assert isinstance(source, ParquetSource)
    assert {reason(source, index) for index in range(4)} == {"no image in its row"}
