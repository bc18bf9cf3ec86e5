"""Names that another program or system has changed: classes that look alike, columns of row numbers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from beitcli.data.sources.files import look_alikes
from beitcli.data.sources.open_data import open_data
from tests.data.sources.test_splits import make_folder, picture


def test_names_that_differ_in_case_spaces_or_unicode_form_are_look_alikes() -> None:
    composed, apart = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    assert look_alikes(("Cat", "cat", "dog", " dog", composed, apart, "cats")) == [
        ("Cat", "cat"),
        ("dog", " dog"),
        (composed, apart),
    ]


def test_classes_that_look_alike_are_told(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(text: str, *_: object) -> None:
        told.append(text)

    names = ["cat/1.png", unicodedata.normalize("NFD", "\u00e9/2.png"), "\u00e9/3.png"]
    source = open_data([make_folder(tmp_path / "a", names)], labelled=True, on_progress=tell)
    assert len(source.classes or ()) == 3
    assert any("'e\\u0301' and '\\xe9' are classes apart" in text for text in told)
    told.clear()
    open_data([make_folder(tmp_path / "b", ["a/1.png", "b/2.png"])], labelled=True, on_progress=tell)
    assert not [text for text in told if "apart" in text]


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_row_numbers_of_a_table_are_no_label(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"{name},path,x,y\n0,1.png,0,1\n1,2.png,1,0\n")
    told: list[str] = []
    source = open_data([str(tmp_path / "t.csv")], on_progress=lambda text, *_: told.append(text))
    assert source.label_names == ("x", "y")
    assert np.array_equal(source.label_vectors(), [[0, 1], [1, 0]])
    assert any("row numbers" in text for text in told)


def test_the_row_numbers_of_parquet_are_no_label(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"image": [picture()] * 2, "x": [0, 1], "y": [1, 1]}, index=[0, 5])
    frame.to_parquet(tmp_path / "t.parquet")
    assert open_data([str(tmp_path / "t.parquet")], labelled=False, vectors=True).label_names == ("x", "y")
