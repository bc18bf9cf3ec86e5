"""The stamp of contents changes with every file that an image is read from."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.pages import PagesSource


def save(path: Path, colour: str) -> Path:
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def touch(path: Path) -> None:
    """Gives a file a later time, as one that was written again has."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("gap", ["removed", "broken link"])
def test_a_file_behind_a_missing_one_of_its_folder_is_looked_at(tmp_path: Path, gap: str) -> None:
    files = [save(tmp_path / f"{name}.png", "red") for name in "abc"]
    source = open_data([str(tmp_path)])
    files[0].unlink()
    if gap == "broken link":
        files[0].symlink_to(tmp_path / "gone")
    before = contents_stamp(source)
    assert contents_stamp(source) == before
    touch(files[2])
    assert contents_stamp(source) != before


def test_pages_of_a_file_change_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "stack.tif"
    page = Image.new("L", (8, 8))
    page.save(file, save_all=True, append_images=[page, page])
    source: Source = PagesSource(open_data([str(tmp_path)]))
    assert len(source) == 3
    before = contents_stamp(source)
    touch(file)
    assert contents_stamp(source) != before


def test_members_of_a_shard_change_with_the_shard(tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for name in "ab":
            archive.add(save(tmp_path / f"{name}.png", "blue"), f"{name}.png")
    source = open_data([str(shard)])
    before = contents_stamp(source)
    touch(shard)
    assert contents_stamp(source) != before
