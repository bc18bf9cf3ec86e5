"""Indexes kept beside the cache: equal to a fresh look, and made anew where damaged, old or of something else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import PackedNames
from beitcli.data.sources.formats._tar_headers import TarReader
from beitcli.data.sources.index_cache import index_path, is_settled, load_index, save_index
from beitcli.data.sources.index_note import index_of
from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError

NAMES = [f"{'ab'[number % 2]}/{number:03d}.png" for number in range(300)]  # more than are worth keeping
LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "beitcli.data.sources.index_cache.SETTLED_NS", -1_000_000_000
    )  # what is just made counts as old
    return tmp_path / "cache" / "indexes"


def make_tar(path: Path, names: list[str], *, at: int = LONG_AGO) -> Path:
    """Members that hold their own names."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            archive.addfile(member, BytesIO(name.encode()))
    os.utime(path, (at, at))
    return path


def make_folder(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return settle(root)


def settle(root: Path) -> Path:
    """As if nothing below had changed for years."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    return root


def content(source: Source) -> list[tuple[str, bytes, int | None]]:
    return [(source.path(index), source.read(index), source.label(index)) for index in range(len(source))]


def kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def mark(cache: Path) -> list[int]:
    """Sets the time of every index back, so that one written anew can be told."""
    for path in kept(cache):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return [path.stat().st_mtime_ns for path in kept(cache)]


def times(cache: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in kept(cache)]


# The file


ARRAYS = {"a": np.arange(5, dtype=np.int64), "b": np.array([], dtype=np.int32), "c": np.array([1, 255], dtype=np.uint8)}


def values(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, list[int]]]:
    return {name: (array.dtype, array.tolist()) for name, array in arrays.items()}


def test_an_index_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    save_index(tmp_path / "x", {"size": 3, "name": "é"}, ARRAYS)
    found = load_index(tmp_path / "x", {"size": 3, "name": "é"})
    assert found is not None
    assert values(found) == values(ARRAYS)
    assert load_index(tmp_path / "x", {"size": 4, "name": "é"}) is None
    assert load_index(tmp_path / "none", {}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 300), value=st.integers(1, 255), cut=st.booleans(), named=st.booleans())
@example(place=8, value=1, cut=True, named=False)
@example(place=239, value=0x29, cut=False, named=False)
def test_an_index_damaged_anywhere_is_none(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool, named: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x"
    save_index(path, {}, ARRAYS, "/data/photos" if named else "")
    whole = bytearray(path.read_bytes())
    place %= len(whole)
    if cut:
        path.write_bytes(whole[:place])
    else:
        whole[place] ^= value
        path.write_bytes(whole)
    found = load_index(path, {})
    if not cut and whole[place] in b"\t\n\r" and found is not None:  # the padding of the header
        assert values(found) == values(ARRAYS)
    else:
        assert found is None


@pytest.mark.parametrize("of", ["/data/photos é", b"/data/caf\xe9", "hf://datasets/a/b/x.parquet", ""])
def test_an_index_says_what_it_is_of(tmp_path: Path, of: str | bytes) -> None:
    save_index(tmp_path / "x", {"size": 3}, ARRAYS, of)
    assert load_index(tmp_path / "x", {"size": 3}) is not None
    assert os.fsencode(index_of(tmp_path / "x")) == os.fsencode(of)


def test_what_is_no_index_is_of_nothing(tmp_path: Path) -> None:
    for content in (b"", b"beit-i1\n", b"\x05" + bytes(7) + b"[1,2]", b"\xff" * 40):
        (tmp_path / "x").write_bytes(content)
        assert index_of(tmp_path / "x") == ""
    assert index_of(tmp_path / "none") == ""


def test_a_pipe_in_the_cache_is_no_index_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    code = "import sys, pathlib; from beitcli.data.sources.index_note import index_of as of; "
    code += "print([of(pathlib.Path(each)) for each in sys.argv[1:]])"
    words = [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path)]
    assert subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout == "['', '']\n"


def test_an_index_of_an_earlier_format_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"beit-i1\n" + bytes(64))
    assert load_index(tmp_path / "x", {}) is None
    save_index(tmp_path / "x", {}, ARRAYS)
    assert load_index(tmp_path / "x", {}) is not None


def test_a_part_of_an_array_is_kept_as_that_part(tmp_path: Path) -> None:
    save_index(tmp_path / "x", {}, {"odd": np.arange(9)[1::2]})
    found = load_index(tmp_path / "x", {})
    assert found is not None
    assert found["odd"].tolist() == [1, 3, 5, 7]


def test_an_index_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    save_index(tmp_path / "cache" / "indexes" / "x", {}, ARRAYS)
    data = make_tar(tmp_path / "x.tar", NAMES)
    assert len(open_data([str(data)])) == 300


@given(st.lists(st.binary(max_size=6), max_size=20), st.lists(st.binary(max_size=6), max_size=20))
def test_packed_names_are_a_list_of_bytes(first: list[bytes], second: list[bytes]) -> None:
    joined = PackedNames.joined([PackedNames(first), PackedNames(second)])
    assert list(joined) == first + second
    assert list(joined.take(np.arange(len(joined))[::2])) == (first + second)[::2]


# Tar shards


def test_a_kept_tar_index_reads_as_the_first_time(tmp_path: Path, cache: Path) -> None:
    shards = [make_tar(tmp_path / f"{part}.tar", [f"{part}/{name}" for name in NAMES]) for part in ("a", "é")]
    first = open_data([str(shard) for shard in shards], labelled=True)
    written = mark(cache)
    again = open_data([str(shard) for shard in shards], labelled=True)
    assert len(written) == 2
    assert times(cache) == written
    assert content(again) == content(first)
    assert (again.classes, again.fingerprint()) == (("a", "b"), first.fingerprint())
    assert content(first)[301] == (f"{shards[1]}/é/b/001.png", "é/b/001.png".encode(), 1)


def test_a_kept_tar_index_keeps_cls_labels_and_splits(tmp_path: Path) -> None:
    names = [
        f"{split}/{number}.{suffix}" for split in ("train", "val") for number in range(300) for suffix in ("png", "cls")
    ]
    data = [str(make_tar(tmp_path / "x.tar", names))]
    for split in ("train", "val"):
        first, again = open_data(data, split=split, labelled=True), open_data(data, split=split, labelled=True)
        assert content(first) == content(again)
        assert (len(first), again.classes) == (300, first.classes)


def test_a_changed_tar_is_indexed_anew(tmp_path: Path, cache: Path) -> None:
    data = make_tar(tmp_path / "x.tar", NAMES)
    open_data([str(data)])
    make_tar(data, [*NAMES[1:], "a/last.png"], at=LONG_AGO + 1)
    assert open_data([str(data)]).read(299) == b"a/last.png"
    assert len(kept(cache)) == 1
    data.unlink()
    with pytest.raises(DataError, match="does not exist"):
        open_data([str(data)])


def test_another_tar_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    data = make_tar(tmp_path / "x.tar", NAMES)
    open_data([str(data)])
    size = data.stat().st_size
    make_tar(data, [f"{name[:-4]}.jpeg{'x' * 600}.png" for name in NAMES[:100]])
    with data.open("ab") as file:
        file.truncate(size)
    os.utime(data, (LONG_AGO, LONG_AGO))
    assert len(open_data([str(data)])) == 100


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path, damage: bytes | None) -> None:
    data = make_tar(tmp_path / "x.tar", NAMES)
    first = open_data([str(data)])
    whole = kept(cache)[0].read_bytes()
    kept(cache)[0].write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert content(open_data([str(data)])) == content(first)
    assert kept(cache)[0].read_bytes() == whole


def test_small_and_unsettled_tars_are_not_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.data.sources.index_cache.SETTLED_NS", 2_000_000_000)
    open_data([str(make_tar(tmp_path / "small.tar", NAMES[:10]))])
    open_data([str(make_tar(tmp_path / "new.tar", NAMES, at=int(time.time())))])
    assert kept(cache) == []
    assert not is_settled(time.time_ns())


def test_hard_links_are_kept_where_they_point(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ["bytes.bin", *NAMES]:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, BytesIO(name.encode()))
        for name, target in (("a/link.png", "bytes.bin"), ("a/second.png", "a/link.png"), ("a/none.png", "gone.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    os.utime(tmp_path / "x.tar", (LONG_AGO, LONG_AGO))
    for _ in range(2):
        source = open_data([str(tmp_path / "x.tar")])
        assert [source.read(index) for index in (299, 300, 301)] == [NAMES[-1].encode(), b"bytes.bin", b"bytes.bin"]
        assert len(source) == 302


# Folders


def test_a_kept_listing_reads_as_the_first_time(tmp_path: Path, cache: Path) -> None:
    data = make_folder(tmp_path / "data", [*NAMES, "a-b/1.png", "a/c/d/1.png", ".hidden/1.png", "a/text.txt"])
    first = open_data([str(data)], labelled=True)
    written = mark(cache)
    again = open_data([str(data)], labelled=True)
    assert (len(written), times(cache)) == (1, written)
    assert content(again) == content(first)
    assert [path for path, *_ in content(first)] == sorted(path for path, *_ in content(first))
    assert (len(again), again.classes, again.fingerprint()) == (302, ("a", "a-b", "b"), first.fingerprint())


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new folder", "folder gone", "deep"])
def test_a_listing_holds_until_a_folder_below_changes(tmp_path: Path, change: str) -> None:
    data = make_folder(tmp_path / "data", [*NAMES, "a/deep/er/1.png", "c/1.png"])
    before = [path for path, *_ in content(open_data([str(data)]))]
    if change == "add":
        (data / "a" / "0.png").write_bytes(b"0")
    elif change == "remove":
        (data / "a" / "000.png").unlink()
    elif change == "rename":
        (data / "a" / "000.png").rename(data / "a" / "999.png")
    elif change == "new folder":
        make_folder(data / "d", ["1.png"])
    elif change == "folder gone":
        (data / "c" / "1.png").unlink()
        (data / "c").rmdir()
    else:
        (data / "a" / "deep" / "er" / "2.png").write_bytes(b"2")
    after = [path for path, *_ in content(open_data([str(data)]))]
    assert after != before
    assert after == sorted(str(path) for path in data.rglob("*.png"))


def test_a_listing_of_folders_that_just_changed_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beitcli.data.sources.index_cache.SETTLED_NS", 2_000_000_000)
    data = make_folder(tmp_path / "data", NAMES)
    os.utime(data / "a")
    open_data([str(data)])
    assert kept(cache) == []


def test_a_link_to_a_folder_is_followed_anew(tmp_path: Path, cache: Path) -> None:
    data = make_folder(tmp_path / "data", NAMES)
    make_folder(tmp_path / "one", ["1.png"])
    make_folder(tmp_path / "two", ["2.png"])
    (data / "link").symlink_to(tmp_path / "one")
    settle(data)
    assert open_data([str(data)]).read(300) == b"1.png"
    assert len(kept(cache)) == 1
    (data / "link").unlink()
    (data / "link").symlink_to(tmp_path / "two")
    settle(data)
    assert open_data([str(data)]).read(300) == b"2.png"


def test_a_listing_with_a_broken_link_is_not_kept(tmp_path: Path, cache: Path) -> None:
    data = make_folder(tmp_path / "data", NAMES)
    (data / "link").symlink_to(tmp_path / "later")
    settle(data)
    assert len(open_data([str(data)])) == 300
    make_folder(tmp_path / "later", ["1.png"])
    assert len(open_data([str(data)])) == 301


def test_the_index_of_a_path_does_not_depend_on_how_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert index_path("tar", "x.tar") == index_path("tar", tmp_path / "." / "x.tar")
    assert index_path("tar", "x.tar") != index_path("folder", "x.tar")


# Progress


def test_opening_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_folder_listing", "_tar_index"):
        monkeypatch.setattr(f"beitcli.data.sources.formats.{module}._TELL_EVERY", 100)
    told: list[tuple[str, int, int, str]] = []
    folder, shard = make_folder(tmp_path / "data", NAMES), make_tar(tmp_path / "x.tar", NAMES)
    open_data([str(folder), str(shard)], on_progress=lambda *event: told.append(event))
    size = shard.stat().st_size
    assert told[:3] == [("looking for images", number, 0, "image") for number in (100, 200, 300)]
    assert [(what, total, unit) for what, _, total, unit in told[3:]] == [("indexing x.tar", size, "byte")] * 3
    assert [done for _, done, *_ in told[3:]] == [number * 1024 - 512 + 9 for number in (100, 200, 300)]
    told.clear()
    open_data([str(folder), str(shard)], on_progress=lambda *event: told.append(event))
    assert told == []


# Headers


def members_by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
        return [(each.name, each.offset_data, each.size) for each in archive if each.isreg()]


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=130), max_size=8
    ),
    plain=st.lists(st.from_regex(r"[a-z]{1,60}(/[a-z]{1,60}){0,2}\.png", fullmatch=True), max_size=8),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    mtime=st.sampled_from([0, 1.5, 10**9, 10**12]),
    size=st.integers(0, 1100),
    is_folder=st.booleans(),
)
def test_headers_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    plain: list[str],
    kind: int,
    mtime: float,
    size: int,
    is_folder: bool,
) -> None:
    path = tmp_path_factory.mktemp("headers") / "x.tar"
    with tarfile.open(path, "w", format=kind) as archive:
        for number, name in enumerate(["first.png", *plain, *names]):
            member = tarfile.TarInfo(f"{number}{name}".replace("//", "/"))
            member.size, member.mtime = size + number, mtime if number % 3 == 1 else 5
            if is_folder and number % 4 == 3:
                member.type, member.size = tarfile.DIRTYPE, 0
            with suppress(ValueError):  # too long for the format
                archive.addfile(member, BytesIO(bytes(member.size)))
    with path.open("rb") as file:
        found = [(each.name, *each.place[:2]) for each in TarReader(file).members() if each.kind == "file"]
    assert found == members_by_tarfile(path)


def test_images_that_an_archive_adds_without_a_trace_in_the_times_of_modification_are_seen(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", NAMES)
    before = len(open_data([str(data)]))
    (data / "a" / "zz_new.png").write_bytes(b"new")
    settle(data)  # as tar and rsync do
    assert len(open_data([str(data)])) == before + 1
