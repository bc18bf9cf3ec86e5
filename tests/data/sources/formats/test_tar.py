"""Tars as people have them: every form of header, sparse files, links, joined shards, and headers without bounds."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.errors import BadImage, DataError

END = bytes(1024)
GNU_TAR = shutil.which("tar")
needs_gnu_tar = pytest.mark.skipif(
    GNU_TAR is None or b"GNU tar" not in subprocess.run([GNU_TAR, "--version"], capture_output=True).stdout,
    reason="no GNU tar",
)


def picture(shade: int = 0, kind: str = "BMP", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(file, kind)
    return file.getvalue()


def block(
    name: bytes,
    content: bytes = b"",
    *,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    tail: bytes = b"",
    size: bytes | None = None,
    link: bytes = b"",
) -> bytes:
    """A header of any form with its content; `tail` is what follows the device numbers, the prefix in ustar."""
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    head += size if size is not None else b"%011o\0" % len(content)
    head += b"%011o\0" % 1_500_000_000 + b" " * 8 + kind + link.ljust(100, b"\0") + magic.ljust(8, b"\0")
    head = (head + bytes(80) + tail).ljust(512, b"\0")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    return head + content + bytes(-len(content) % 512)


def records(**values: object) -> bytes:
    lines = b""
    for key, value in values.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        lines += str(length).encode() + body
    return lines


def opened(path: Path, content: bytes, **options: object) -> Source:
    path.write_bytes(content)
    return open_data([str(path)], **options)


def names(source: Source) -> list[str]:
    return [source.path(index).partition(".tar/")[2] for index in range(len(source))]


def remarks(path: Path, **options: object) -> list[str]:
    told: list[str] = []
    open_data([str(path)], on_progress=lambda what, done, total, unit: told.append(what), **options)
    return told


# Splits


def test_an_unknown_split_is_refused_beside_a_folder_that_is_none(tmp_path: Path) -> None:
    members = ["train/a/1.bmp", "train/b/2.bmp", "val/a/3.bmp", "leftovers/4.bmp", "leftovers/deep/5.bmp"]
    content = b"".join(block(name.encode(), picture(at)) for at, name in enumerate(members)) + END
    shard = tmp_path / "x.tar"
    assert names(opened(shard, content, split="val")) == ["val/a/3.bmp"]
    for wrong in ("nonsense", "leftover", "", "../train", "leftovers/deep", "test"):
        with pytest.raises(DataError, match="has no split") as error:
            open_data([str(shard)], split=wrong)
        assert error.value.exit_code == 3
    aside = open_data([str(shard)], split="leftovers")  # a folder of another name, as of a folder on disk
    assert names(aside) == ["leftovers/4.bmp", "leftovers/deep/5.bmp"]
    assert [aside.label(index) for index in range(2)] == [None, None]
    flat = tmp_path / "flat.tar"
    for wrong in ("val", "train", "nonsense"):
        with pytest.raises(DataError, match="it has no splits") as error:
            opened(flat, block(b"a/1.bmp", picture()) + block(b"b/2.bmp", picture()) + END, split=wrong)
        assert error.value.exit_code == 3


# Forms of headers


@pytest.mark.parametrize(
    ("magic", "tail", "path"),
    [
        (b"ustar\x0000", b"train/cat", "train/cat/1.bmp"),
        (b"ustar\x0000", b"", "1.bmp"),
        (b"ustar  \0", b"13723370755\x0013723370755\0", "1.bmp"),  # GNU: times of access and change
        (b"ustar  \0", b"\0" * 12 + b"13723370755\0", "1.bmp"),
        (b"", b"left by an old program", "1.bmp"),  # v7 ends at the link
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"\0"])
def test_the_magic_tells_whether_a_header_has_a_prefix(
    tmp_path: Path, magic: bytes, tail: bytes, path: str, kind: bytes
) -> None:
    source = opened(tmp_path / "x.tar", block(b"1.bmp", picture(7), magic=magic, tail=tail, kind=kind) + END)
    assert names(source) == [path]
    assert source.read(0) == picture(7)


def test_times_in_headers_are_no_folders_of_splits_and_keys(tmp_path: Path) -> None:
    times = b"14371573470\x0014371573471\0"
    old = {"magic": b"ustar  \0", "tail": times}
    content = b"".join(
        block(name.encode(), picture(at), **old)
        for at, name in enumerate(["train/x/1.bmp", "train/y/2.bmp", "val/x/3.bmp", "val/y/4.bmp"])
    )
    directory = block(b"train/", b"Y1.bmp\0\0", kind=b"D", **old)  # --incremental lists folders
    assert names(opened(tmp_path / "x.tar", directory + content + END)) == ["train/x/1.bmp", "train/y/2.bmp"]
    pairs = b"".join(
        block(b"%d.bmp" % at, picture(at), magic=b"ustar  \0", tail=b"1437157347%d\0" % at)
        + block(b"%d.cls" % at, b"%d" % (at % 2), magic=b"ustar  \0", tail=b"1437157300%d\0" % at)
        for at in range(4)
    )
    source = opened(tmp_path / "y.tar", pairs + END, labelled=True)
    assert [source.label(index) for index in range(4)] == [0, 1, 0, 1]


def test_sizes_in_base_256_and_long_names_and_links(tmp_path: Path) -> None:
    long, gnu = b"d" * 140 + b"/" + b"e" * 120 + b".bmp", b"ustar  \0"
    large = b"\x80" + len(picture(3)).to_bytes(11)
    content = block(b"1.bmp", picture(3), size=large, magic=gnu)
    content += block(b"././@LongLink", long + b"\0", kind=b"L", magic=gnu) + block(b"cut.bmp", picture(4), magic=gnu)
    content += block(b"././@LongLink", long + b"\0", kind=b"K", magic=gnu)
    content += block(b"2.bmp", kind=b"1", link=b"cut off", magic=gnu)
    source = opened(tmp_path / "x.tar", content + END)
    assert names(source) == ["1.bmp", long.decode(), "2.bmp"]
    assert [source.read(index) for index in range(3)] == [picture(3), picture(4), picture(4)]


def test_pax_records_replace_what_the_header_says(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    good = picture(9)
    content = block(b"head", records(comment="made by a test"), kind=b"g")
    content += block(b"pax", records(path="ü/" + "n" * 200 + ".bmp", size=len(good)), kind=b"x")
    wrong = block(b"n.bmp", size=b"%011o\0" % 0)  # a size that only the record knows
    content += wrong + good + bytes(-len(good) % 512)
    content += block(b"pax", records(linkpath="ü/" + "n" * 200 + ".bmp"), kind=b"x")
    content += block(b"link.bmp", kind=b"2", link=b"short") + block(b"last.bmp", picture(1))
    source = opened(shard, content + END)
    assert names(source) == ["ü/" + "n" * 200 + ".bmp", "link.bmp", "last.bmp"]
    assert [source.read(index) for index in range(3)] == [good, good, picture(1)]


# Sparse files


HOLES = b"\1" * 512 + bytes(1024) + b"\2" * 300 + bytes(700)  # two pieces, and a hole at the end
STORED = b"\1" * 512 + b"\2" * 300


def sparse_members() -> dict[str, bytes]:
    """The same sparse file as GNU tar has written it over the years."""
    entries = [(0, 512), (1536, 300), (len(HOLES), 0)]
    gnu = b"".join(b"%011o\0%011o\0" % each for each in entries)
    listed = ",".join(f"{place},{length}" for place, length in entries)
    lines = "".join(f"{place}\n{length}\n" for place, length in entries)
    map_block = f"{len(entries)}\n{lines}".encode().ljust(512, b"\0")
    old = records(GNU__sparse__size=len(HOLES), GNU__sparse__numblocks=3)
    for place, length in entries:
        old += records(GNU__sparse__offset=place, GNU__sparse__numbytes=length)
    new = {"GNU__sparse__major": 1, "GNU__sparse__minor": 0}
    name = {"GNU__sparse__name": "s.bmp", "GNU__sparse__realsize": len(HOLES)}
    short = {"GNU__sparse__name": "s.bmp", "GNU__sparse__size": len(HOLES), "GNU__sparse__map": listed}
    hidden = b"GNUSparseFile.7/s.bmp"
    return {
        "gnu": block(
            b"s.bmp",
            STORED,
            kind=b"S",
            magic=b"ustar  \0",
            tail=bytes(41) + gnu.ljust(97, b"\0") + b"%011o\0" % len(HOLES),
        ),
        "pax 0.0": block(b"pax", old, kind=b"x") + block(b"s.bmp", STORED),
        "pax 0.1": block(b"pax", records(**short), kind=b"x") + block(hidden, STORED),
        "pax 1.0": block(b"pax", records(**new, **name), kind=b"x") + block(hidden, map_block + STORED),
    }


@pytest.mark.parametrize("form", ["gnu", "pax 0.0", "pax 0.1", "pax 1.0"])
def test_sparse_files_are_read_with_their_holes(tmp_path: Path, form: str) -> None:
    content = block(b"a.bmp", picture(1)) + sparse_members()[form] + block(b"z.bmp", picture(2)) + END
    source = opened(tmp_path / "x.tar", content)
    assert names(source) == ["a.bmp", "s.bmp", "z.bmp"]
    assert [source.read(index) for index in range(3)] == [picture(1), HOLES, picture(2)]
    both = open_data([str(tmp_path / "x.tar"), str(shutil.copy(tmp_path / "x.tar", tmp_path / "y.tar"))])
    assert [both.read(index) for index in (1, 4)] == [HOLES, HOLES]  # each shard has its own pieces


def test_a_gnu_sparse_map_goes_on_in_blocks_of_its_own(tmp_path: Path) -> None:
    pairs = [(1024 * number, 512) for number in range(4 + 21 + 3)]
    entries = [b"%011o\0%011o\0" % each for each in pairs]
    stored = b"".join(bytes([number + 1]) * 512 for number in range(28))
    head = bytes(41) + b"".join(entries[:4]) + b"\1" + b"%011o\0" % (28 * 1024)
    head = block(b"s.bmp", b"", kind=b"S", magic=b"ustar  \0", tail=head, size=b"%011o\0" % len(stored))
    more = (b"".join(entries[4:25]) + b"\1").ljust(512, b"\0") + b"".join(entries[25:]).ljust(512, b"\0")
    source = opened(tmp_path / "x.tar", head + more + stored + block(b"z.bmp", picture(5)) + END)
    assert source.read(0) == b"".join(bytes([number + 1]) * 512 + bytes(512) for number in range(28))
    assert source.read(1) == picture(5)


@needs_gnu_tar
@pytest.mark.parametrize(
    "options", [["gnu"], ["pax"], ["pax", "--sparse-version=0.0"], ["pax", "--sparse-version=0.1"]]
)
def test_sparse_files_of_gnu_tar_are_read(tmp_path: Path, options: list[str]) -> None:
    data = picture(0, side=256)
    with (tmp_path / "black.bmp").open("wb") as file:
        file.write(data[:4096])
        file.truncate(len(data))
    command = [str(GNU_TAR), "-S", f"--format={options[0]}", *options[1:], "-cf", "x.tar", "black.bmp"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if (tmp_path / "x.tar").stat().st_size > len(data):
        pytest.skip("this file system keeps no holes")
    source = open_data([str(tmp_path / "x.tar")])
    assert source.read(0) == data


def test_a_sparse_file_that_claims_more_than_memory_is_a_bad_image(tmp_path: Path) -> None:
    huge = records(GNU__sparse__size=2_000_000_000, GNU__sparse__map="0,512")
    content = block(b"pax", huge, kind=b"x") + block(b"s.bmp", b"\1" * 512) + block(b"z.bmp", picture(5)) + END
    source = opened(tmp_path / "x.tar", content)
    with pytest.raises(BadImage, match="sparse"):
        source.read(0)
    assert source.read(1) == picture(5)


# Links


def test_links_to_members_of_the_same_tar_are_read(tmp_path: Path) -> None:
    def link(name: bytes, target: bytes, kind: bytes = b"2") -> bytes:
        return block(name, kind=kind, link=target)

    shard = tmp_path / "x.tar"
    content = link(b"a/early.bmp", b"../store/.one") + block(b"store/.one", picture(1)) + block(b"a/2.bmp", picture(2))
    content += link(b"b/2.bmp", b"../a/2.bmp") + link(b"b/3.bmp", b"2.bmp") + link(b"b/4.bmp", b"a/2.bmp", b"1")
    content += link(b"b/5.bmp", b"b/3.bmp", b"1")  # a second name of a link
    content += link(b"c/loop.bmp", b"pool.bmp") + link(b"c/pool.bmp", b"loop.bmp") + link(b"c/self.bmp", b"self.bmp")
    content += link(b"c/out.bmp", b"/etc/hostname") + link(b"c/up.bmp", b"../../x.bmp") + link(b"d", b"a")
    content += block(b"c/device.bmp", kind=b"3") + link(b"c/gone.bmp", b"c/gone", b"1")
    source = opened(shard, content + END)
    assert names(source) == ["a/early.bmp", "a/2.bmp", "b/2.bmp", "b/3.bmp", "b/4.bmp", "b/5.bmp"]
    assert [source.image(index).getpixel((0, 0))[0] for index in range(6)] == [1, 2, 2, 2, 2, 2]
    assert source.classes == ("a", "b")
    (told,) = remarks(shard)
    assert told.endswith("6 links that lead to no member, 1 link to a folder and 1 member that is no file.")


def test_a_class_may_be_a_link(tmp_path: Path) -> None:
    content = block(b"0.bmp", picture(0)) + block(b"0.cls", b"7") + block(b"1.bmp", picture(1))
    content += block(b"1.cls", kind=b"2", link=b"0.cls") + block(b"2.bmp", picture(2)) + block(b"2.cls", b"5")
    source = opened(tmp_path / "x.tar", content + END, labelled=True)
    assert [source.classes[source.label(index)] for index in range(3)] == ["7", "7", "5"]


def test_a_long_chain_of_links_ends(tmp_path: Path) -> None:
    content = block(b"0.bmp", picture(1))
    content += b"".join(block(b"%d.bmp" % n, kind=b"2", link=b"%d.bmp" % (n - 1)) for n in range(1, 300))
    source = opened(tmp_path / "x.tar", content + END)
    assert len(source) == 41  # as far as a system would follow them
    assert "259 links that lead to no member" in remarks(tmp_path / "x.tar")[0]


# Joined tars and their ends


def test_joined_tars_are_read_to_the_last(tmp_path: Path) -> None:
    first = block(b"a/1.bmp", picture(1)) + block(b"a/l.bmp", kind=b"2", link=b"1.bmp") + END + bytes(8192)
    second = block(b"a/1.bmp", picture(2)) + block(b"a/l.bmp", kind=b"1", link=b"a/1.bmp") + END
    source = opened(tmp_path / "x.tar", first + second + second)
    assert [source.image(index).getpixel((0, 0))[0] for index in range(6)] == [1, 1, 2, 2, 2, 2]
    lone = block(b"1.bmp", picture(1)) + bytes(512) + block(b"2.bmp", picture(2)) + END
    assert names(opened(tmp_path / "lone.tar", lone)) == ["1.bmp", "2.bmp"]
    with pytest.raises(DataError, match="mark of its end"):
        opened(tmp_path / "cut.tar", first + second[:-1024])


def test_what_follows_the_end_and_is_no_tar_is_told(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    whole = block(b"1.bmp", picture(1)) + END
    assert len(opened(shard, whole + b"\x1f\x8b" * 300)) == 1
    assert remarks(shard) == [f"'{shard}': not read: 600 bytes after the end mark, which are no tar."]
    shard.write_bytes(whole + bytes(100_000))
    assert remarks(shard) == []


def test_a_block_of_zeros_in_the_place_of_a_header_is_damage(tmp_path: Path) -> None:
    content = bytearray(b"".join(block(b"%d.bmp" % n, b"\1" * 600) for n in range(3)) + END)
    content[1536:2048] = bytes(512)
    with pytest.raises(DataError, match="no header at byte 2,048"):
        opened(tmp_path / "x.tar", bytes(content))


# Endings


def test_webdataset_endings_count_in_any_case(tmp_path: Path) -> None:
    content = b""
    for key, ending, kind, label in (
        ("A", "BMP", "CLS", b"3"),
        ("b.c", "Bmp", "Cls", b"\xef\xbb\xbf12\r\n"),
        ("d", "bmp", "cls", b"3\0"),
    ):
        content += block(f"{key}.{ending}".encode(), picture(1)) + block(f"{key}.{kind}".encode(), label)
        content += block(f"{key}.JSON".encode(), b"{}")
    source = opened(tmp_path / "X.TAR", content + END, labelled=True)
    assert source.classes == ("3", "12")
    assert [source.label(index) for index in range(3)] == [0, 1, 0]
    assert remarks(tmp_path / "X.TAR") == [f"'{tmp_path / 'X.TAR'}': 3 files not read (.json)."]


def test_an_empty_cls_member_is_no_class(tmp_path: Path) -> None:
    content = b"".join(
        block(f"x/{at}.bmp".encode(), picture(at)) + block(f"x/{at}.cls".encode(), label)
        for at, label in enumerate((b"cat", b" \n", b"dog"))
    )
    with pytest.raises(DataError, match=r"1 of the 3 images .* no class, such as '.*x/1\.bmp'"):
        opened(tmp_path / "x.tar", content + END, labelled=True)


# Bounds


@pytest.mark.parametrize(
    "chained",
    [
        block(b"././@LongLink", b"n" * 120, kind=b"L", magic=b"ustar  \0"),
        block(b"././@LongLink", b"n" * 120, kind=b"K", magic=b"ustar  \0"),
        block(b"pax", records(path="n" * 120), kind=b"x"),
        block(b"pax", records(comment="n" * 120), kind=b"g"),
        block(b"pax", records(path="n" * 120), kind=b"X"),
    ],
    ids=["L", "K", "x", "g", "X"],
)
def test_chained_headers_are_refused_by_name(tmp_path: Path, chained: bytes) -> None:
    with pytest.raises(DataError, match=r"Shard '.*x\.tar' is cut short or damaged: more than .* in a row") as error:
        opened(tmp_path / "x.tar", chained * 3000 + block(b"1.bmp", picture()) + END)
    assert error.value.exit_code == 3


GIANT = b"\x80" + (1 << 60).to_bytes(11)


@pytest.mark.parametrize("size", [GIANT, b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"9\0"])
@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"S", b"7", b"D", b"Z"])
def test_giant_sizes_are_refused_without_memory(tmp_path: Path, kind: bytes, size: bytes) -> None:
    content = block(b"1.bmp", picture()) + block(b"2.bmp", bytes(512), kind=kind, size=size) + END
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"x\.tar' is cut short or damaged") as error:
            opened(tmp_path / "x.tar", content)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    "values",
    [
        {"size": 1 << 70},
        {"size": "9" * 5000},
        {"size": -1},
        {"GNU__sparse__map": "0,512"},
        {"GNU__sparse__size": 512, "GNU__sparse__map": "0,512,0,512"},
        {"GNU__sparse__size": 512, "GNU__sparse__map": "0,513"},
        {"GNU__sparse__size": 1 << 62, "GNU__sparse__map": f"0,{1 << 61}"},
        {"GNU__sparse__size": 512, "GNU__sparse__map": "0"},
        {"GNU__sparse__size": 512, "GNU__sparse__map": "x,y"},
        {"GNU__sparse__realsize": 512, "GNU__sparse__major": 1},  # no map in the data
    ],
)
def test_impossible_pax_records_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    content = block(b"pax", records(**values), kind=b"x") + block(b"1.bmp", b"9" * 512) + END
    with pytest.raises(DataError, match=r"x\.tar' is cut short or damaged"):
        opened(tmp_path / "x.tar", content)


def test_pax_records_that_lie_about_their_length_end(tmp_path: Path) -> None:
    for lie in (b"0 path=a\n", b"00 path=a\n", b"2 \n", b"99 path=a\n", b"path=a\n", b"3 a\n", b"9 path=ab"):
        with pytest.raises(DataError, match="damaged pax records"):
            opened(tmp_path / "x.tar", block(b"pax", lie, kind=b"x") + block(b"1.bmp", picture()) + END)


# Kept indexes


def test_an_index_of_an_earlier_version_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(300):
            member = tarfile.TarInfo(f"{number:03d}.bmp")
            member.size = len(picture(1))
            archive.addfile(member, io.BytesIO(picture(1)))
        link = tarfile.TarInfo("link.bmp")
        link.type, link.linkname = tarfile.SYMTYPE, "000.bmp"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("notes.txt"))
    monkeypatch.setattr("beitcli.data.sources.index_cache.SETTLED_NS", -1_000_000_000)
    with monkeypatch.context() as earlier:
        earlier.setattr("beitcli.data.sources.formats._tar_index._VERSION", 2)
        earlier.setattr("beitcli.data.sources.formats._tar_index.resolve_links", lambda members: {})
        assert len(open_data([str(shard)])) == 300
    (kept,) = (tmp_path / "cache" / "indexes").iterdir()
    before = kept.read_bytes()
    assert len(open_data([str(shard)])) == 301
    assert kept.read_bytes() != before
    again = open_data([str(shard)])
    assert again.read(300) == picture(1)
    assert remarks(shard) == [f"'{shard}': 1 file not read (.txt)."]  # from the kept index
