"""Labels of parquet: every type that can be classes, and what is said of the others."""

from __future__ import annotations

import json
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError


def write(path: Path, label: Any, names: list[str] | None = None, group: int = 2) -> str:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    table = pa.table({"image": [file.getvalue()] * len(label), "label": label})
    if names is not None:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()})
    parquet.write_table(table, path, row_group_size=group)
    return str(path)


def labels(source: Source) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


READ: dict[str, tuple[Any, tuple[str, ...], list[int]]] = {
    "uint64": (pa.array([2**64 - 1, 3, 2**63], pa.uint64()), ("3", str(2**63), str(2**64 - 1)), [2, 0, 1]),
    "int64": (pa.array([-5, 3, -(2**63)], pa.int64()), (str(-(2**63)), "-5", "3"), [1, 2, 0]),
    "bool": (pa.array([True, False, True]), ("False", "True"), [1, 0, 1]),
    "one bool": (pa.array([True, True, True]), ("False", "True"), [1, 1, 1]),
    "whole floats": (pa.array([10.0, 9.0, 10.0]), ("9", "10"), [1, 0, 1]),
    "half floats": (pa.array([1.0, 0.0, 2.0], pa.float16()), ("0", "1", "2"), [1, 0, 2]),
    "decimals": (pa.array([Decimal("1.00"), Decimal("0.00"), Decimal("1.00")]), ("0", "1"), [1, 0, 1]),
    "strings": (pa.array(["dog", "ant", "dog"]), ("ant", "dog"), [1, 0, 1]),
    "large strings": (pa.array(["dog", "ant", "dog"], pa.large_string()), ("ant", "dog"), [1, 0, 1]),
    "views": (pa.array(["dog", "ant", "dog"], pa.string_view()), ("ant", "dog"), [1, 0, 1]),
    "bytes": (pa.array([b"dog", b"ant", b"dog"]), ("ant", "dog"), [1, 0, 1]),
    "dictionary": (
        pa.DictionaryArray.from_arrays([0, 1, 0], ["dog", "ant", "never"]),  # a value that no row has is no class
        ("ant", "dog"),
        [1, 0, 1],
    ),
    "dictionary of numbers": (pa.array([7, 5, 7]).dictionary_encode(), ("5", "7"), [1, 0, 1]),
}


@pytest.mark.parametrize("kind", READ)
def test_labels_of_every_type_are_classes(tmp_path, kind):
    column, classes, expected = READ[kind]
    path = write(tmp_path / "x.parquet", column)
    for labelled in (True, False):
        source = open_data([path], labelled=labelled)
        assert (source.classes, labels(source)) == (classes, expected)


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int8(), pa.float64(), pa.float16(), pa.bool_()])
def test_declared_names_keep_their_order_for_every_number(tmp_path, kind):
    path = write(tmp_path / "x.parquet", pa.array([1, 0, 1], pa.int8()).cast(kind), ["zebra", "ant"])
    source = open_data([path], labelled=True)
    assert (source.classes, labels(source)) == (("zebra", "ant"), [1, 0, 1])


REFUSED: dict[str, tuple[Any, str]] = {
    "fractions": ([1.0, 0.5, 0.5], "2 of the 3 labels of .*, the first in row 1: 0.5 is no whole number"),
    "NaN": (pa.array([1.0, 2.0, float("nan")]), "1 of the 3 labels of .*, the first in row 2: nan is no whole number"),
    "infinity": (pa.array([1.0, float("inf"), 2.0]), "the first in row 1: inf is no whole number"),
    "decimals": (pa.array([Decimal("1.5"), Decimal("1.0"), Decimal("2.5")]), "2 of the 3 .* 1.5 is no whole number"),
    "nulls": (pa.array([None] * 3, pa.int64()), "has no labels: all 3 in its column label are null"),
    "null type": (pa.array([None] * 3), "has no labels: all 3 in its column label are null"),
    "lists": ([[1], [2], [3]], "its column label is list<element: int64>"),
    "structs": ([{"a": 1}] * 3, "its column label is struct<a: int64>"),
    "dates": (pa.array([1, 2, 3], pa.timestamp("s")), "its column label is timestamp"),
    "some nulls": (pa.array(["a", None, None]), r"2 of the 3 images .* have no class, such as '.*x\.parquet/1'"),
    "null in a dictionary": (
        pa.array(["a", None, "a"]).dictionary_encode(),
        r"1 of the 3 images .* have no class, such as '.*x\.parquet/1'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_no_classes_are_refused_where_they_are_needed(tmp_path, kind):
    column, said = REFUSED[kind]
    path = write(tmp_path / "x.parquet", column)
    source = open_data([path])
    assert (len(source), source.classes, labels(source)) == (3, None, [None] * 3)
    with pytest.raises(DataError, match=said) as error:
        open_data([path], labelled=True)
    assert error.value.hint


def test_label_beyond_the_declared_names_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", pa.array([0, 2**64 - 1, 7], pa.uint64()), ["a", "b"])
    with pytest.raises(DataError, match=f"2 of the 3 .* first in row 1: {2**64 - 1} is none of its 2 class names"):
        open_data([path], labelled=True)
    path = write(tmp_path / "x.parquet", [-1, -1], ["a", "b"])  # as test splits of the datasets library have it
    with pytest.raises(DataError, match="all 2 in its column label are null or below 0"):
        open_data([path], labelled=True)


def test_files_of_other_label_types_share_their_classes_by_name(tmp_path):
    first = write(tmp_path / "a.parquet", pa.array([2.0, 1.0]))
    second = write(tmp_path / "b.parquet", pa.array(["1", "2"]).dictionary_encode())
    source = open_data([first, second], labelled=True)
    assert (source.classes, labels(source)) == (("1", "2"), [1, 0, 0, 1])


def test_fingerprint_of_unlabelled_use_ignores_labels_that_were_not_read_before(tmp_path):
    def printed(column: Any, labelled: bool) -> str:
        return open_data([write(tmp_path / "x.parquet", column)], labelled=labelled).fingerprint()

    dates = printed(pa.array([1, 2], pa.timestamp("s")), False)
    assert printed([1.0, 2.0], False) == dates  # pretraining on such a file goes on
    assert printed([1.0, 2.0], True) != dates
    assert printed([1, 2], False) != dates
