"""Files of run folders and caches: never through a link, a pipe or a folder; whole or absent; with the umask's mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from beitcli.runtime.storage.own_files import (
    append_line,
    apply_umask,
    atomic_write,
    atomic_write_text,
    create_new,
    open_own,
    remove_entry,
    temporary_beside,
)
from tests.helpers.forked import forked


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A file of the user, outside the folder that is shared."""
    file = tmp_path / "thesis.txt"
    file.write_text("three years")
    return file


def test_links_pipes_and_folders_are_refused_by_name(tmp_path: Path, thesis: Path) -> None:
    places = {kind: tmp_path / kind for kind in ("link", "dangling", "pipe", "folder")}
    places["link"].symlink_to(thesis)
    places["dangling"].symlink_to(tmp_path / "absent")
    os.mkfifo(places["pipe"])
    places["folder"].mkdir()
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT):
        for kind, place in places.items():
            with pytest.raises(OSError, match=r"it is a (link|pipe|folder)") as caught:
                os.close(open_own(place, flags))
            assert caught.value.filename == str(place), kind
    with pytest.raises(OSError, match="a link"):
        append_line(places["link"], "{}")
    assert thesis.read_text() == "three years"
    assert not (tmp_path / "absent").exists()


def test_new_files_and_replaced_ones_are_not_written_through_a_link(tmp_path: Path, thesis: Path) -> None:
    place = tmp_path / "x.json"
    temporary_beside(place).symlink_to(thesis)  # its name can be guessed
    place.symlink_to(thesis)
    atomic_write_text(place, "new")
    assert (place.read_text(), place.is_symlink()) == ("new", False)
    other = tmp_path / "y"
    other.symlink_to(thesis)
    create_new(other).close()
    assert (other.is_symlink(), thesis.read_text()) == (False, "three years")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt", "x.json", "y"]


def test_a_failed_write_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / ("n" * 250)  # a longer temporary name would not fit
    atomic_write_text(place, "old")

    def write(file) -> None:
        file.write(b"half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        atomic_write(place, write)
    assert (place.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    def work() -> None:
        os.umask(0o027)
        atomic_write_text(tmp_path / "a", "")
        (tmp_path / "b").touch(0o600)
        apply_umask(tmp_path / "b")

    assert forked(work).code == 0
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o640, 0o640]


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "weights").touch()
    (tmp_path / "link").symlink_to(tmp_path / "away")
    remove_entry(tmp_path / "link")
    remove_entry(tmp_path / "absent")
    assert (tmp_path / "away" / "weights").exists()
    remove_entry(tmp_path / "away")
    assert list(tmp_path.iterdir()) == []
