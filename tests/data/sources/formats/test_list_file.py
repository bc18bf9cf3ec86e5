"""A list or a table is refused where no file that it names is there, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError
from tests.conftest import save_picture


@pytest.fixture
def gone(tmp_path: Path) -> list[str]:
    """3,000 sorted paths; the folder of the first 2,800 is not there. The others are one file."""
    save_picture(tmp_path / "b.png", (90, 40, 20), seed=1)
    return [f"a/{number:04d}.png" for number in range(2_800)] + ["b.png"] * 200


def test_a_sorted_list_whose_first_folder_is_gone_is_opened(tmp_path: Path, gone: list[str]) -> None:
    (tmp_path / "list.txt").write_text("\n".join(gone))
    (tmp_path / "table.csv").write_text("path,cat\n" + "".join(f"{path},1\n" for path in gone))
    assert len(open_data([str(tmp_path / "list.txt")])) == 3_000
    assert len(open_data([str(tmp_path / "table.csv")])) == 3_000


def test_a_list_without_a_file_is_refused_unless_each_is_reported(tmp_path: Path, gone: list[str]) -> None:
    (tmp_path / "list.txt").write_text("\n".join(gone[:2_800]))
    (tmp_path / "table.csv").write_text("path,cat\n" + "".join(f"{path},1\n" for path in gone[:2]))
    with pytest.raises(DataError, match=r"list of 2,800 paths, of which none of 1,000 all over it is a file, the fi"):
        open_data([str(tmp_path / "list.txt")], reports_missing=False)
    with pytest.raises(DataError, match=r"table of 2 paths, of which none is a file, the first: 'a/0000\.png'"):
        open_data([str(tmp_path / "table.csv")], reports_missing=False)
    assert len(open_data([str(tmp_path / "list.txt")])) == 2_800
    assert len(open_data([str(tmp_path / "table.csv")])) == 2


def test_doctor_reports_each_file_of_a_list_that_is_gone(beit: Callable, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    ended = beit("doctor", tmp_path / "list.txt", "--json", "--workers", 0)
    assert "is read as a list" not in ended.err
    assert "a.png" in ended.out
    assert "b.png" in ended.out
