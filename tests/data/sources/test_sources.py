"""Sources over real images made here: what each reads, in which order, with which labels, and what it refuses."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import sys
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import EXTENSIONS, PackedNames, class_order
from beitcli.data.sources.formats.tar import TarSource
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.errors import BadImage, DataError, UsageError

MACOS = sys.platform == "darwin"  # its file systems refuse names that are not UTF-8


def picture(shade: int = 0, image_format: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(file, image_format)
    return file.getvalue()


def make_folder(root: Path, names: list[str]) -> Path:
    for shade, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(shade))
    return root


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def paths(source: Source, root: Path) -> list[str]:
    return [source.path(index).removeprefix(f"{root}/") for index in range(len(source))]


def labels(source: Source) -> list[int | None]:
    return [source.label(index) for index in range(len(source))]


def shade(source: Source, index: int) -> int:
    return source.image(index).getpixel((0, 0))[0]


# A folder


def test_folder_reads_images_in_the_order_of_the_paths(tmp_path: Path) -> None:
    names = ["b/1.png", "b/0.PNG", "a/2.jpg", "a-b/1.webp", "a/deep/er/3.tiff", "a.png"]
    make_folder(tmp_path, [*names, ".hidden.png", "a/.cache/4.png", "a/notes.txt"])
    source = open_data([str(tmp_path)])
    assert paths(source, tmp_path) == sorted(names)
    assert [shade(source, index) for index in range(6)] == [names.index(name) for name in sorted(names)]
    assert source.name == str(tmp_path)


def test_folder_class_is_the_first_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, ["cat-big/1.png", "cat/deep/2.png", "cat/1.png", "ant/1.png"])
    (tmp_path / "empty").mkdir()
    source = open_data([str(tmp_path)], labelled=True)
    assert source.classes == ("ant", "cat", "cat-big")
    assert dict(zip(paths(source, tmp_path), labels(source), strict=True)) == {
        "ant/1.png": 0,
        "cat-big/1.png": 2,
        "cat/1.png": 1,
        "cat/deep/2.png": 1,
    }


def test_folder_without_class_folders_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, ["1.png", "2.png"])
    source = open_data([str(tmp_path)])
    assert source.classes is None
    assert labels(source) == [None, None]
    with pytest.raises(DataError, match="no labels") as error:
        open_data([str(tmp_path)], labelled=True)
    assert "CLASS/image.jpg" in error.value.hint


def test_folder_mixed_is_refused_only_where_labels_are_needed(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png", "b/1.png", "loose.png"])
    assert open_data([str(tmp_path)]).classes is None
    with pytest.raises(DataError, match=r"1 of the 3 images .*loose\.png"):
        open_data([str(tmp_path)], labelled=True)


def test_folder_with_one_class_is_refused_where_labels_are_needed(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png", "a/2.png"])
    assert open_data([str(tmp_path)]).classes == ("a",)
    with pytest.raises(DataError, match="one class only, 'a'"):
        open_data([str(tmp_path)], labelled=True)


def test_folder_splits_follow_the_role_and_the_split(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train/a/1.png", "val/a/2.png", "test/a/3.png"])
    root = str(tmp_path)
    assert paths(open_data([root]), tmp_path) == ["train/a/1.png"]
    assert paths(open_data([root], role="eval"), tmp_path) == ["val/a/2.png"]
    assert paths(open_data([root], role="eval", split="train"), tmp_path) == ["train/a/1.png"]
    assert paths(open_data([root], split="test"), tmp_path) == ["test/a/3.png"]
    assert open_data([root]).classes == ("a",)
    assert paths(open_data([root], split="dev"), tmp_path) == ["val/a/2.png"]
    with pytest.raises(DataError, match="no split 'extra': it has test, train, val"):
        open_data([root], split="extra")


def test_folder_with_train_alone_has_no_val(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train/a/1.png"])
    with pytest.raises(DataError, match="no split 'val'") as error:
        open_data([str(tmp_path)], role="eval")
    assert "--split train" in error.value.hint


def test_folder_class_may_be_called_train(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train/1.png", "bus/1.png"])
    assert open_data([str(tmp_path)]).classes == ("bus", "train")
    with pytest.raises(DataError, match="no split 'val': it has no splits"):
        open_data([str(tmp_path)], split="val")


def test_folder_of_pictures_and_masks_gives_pictures(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train/images/1.png", "train/masks/1.png", "val/images/2.png", "val/masks/2.png"])
    source = open_data([str(tmp_path)])
    assert paths(source, tmp_path) == ["train/images/1.png"]
    assert source.classes is None


def test_folder_follows_links_without_going_round(tmp_path: Path) -> None:
    make_folder(tmp_path, ["data/a/1.png", "elsewhere/2.png"])
    root = tmp_path / "data"
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c.png").symlink_to("gone.png")
    source = open_data([str(root)])
    assert paths(source, root) == ["a/1.png", "b/2.png", "c.png"]
    with pytest.raises(BadImage, match="no such file"):
        source.read(2)


def test_folder_without_images_names_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="No images below") as error:
        open_data([str(tmp_path)])
    rarer = len(EXTENSIONS) - 8
    assert error.value.hint == (
        f"Images end in .jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff or one of {rarer} rarer endings."
    )
    make_tar(tmp_path / "x.tar", {"1.png": picture()})
    assert paths(open_data([str(tmp_path)]), tmp_path) == ["x.tar/1.png"]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png"])
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed"):
            open_data([str(tmp_path)])
    finally:
        (tmp_path / "a").chmod(0o755)


# Tar shards


def test_tar_reads_members_and_parent_classes(tmp_path: Path) -> None:
    members = {"train/cat/1.png": picture(1), "train/ant/2.PNG": picture(2), "train/ant/._2.png": b"", "a.txt": b"x"}
    make_tar(tmp_path / "x.tar", members)
    source = open_data([str(tmp_path / "x.tar")], labelled=True)
    assert paths(source, tmp_path) == ["x.tar/train/cat/1.png", "x.tar/train/ant/2.PNG"]
    assert source.classes == ("ant", "cat")
    assert labels(source) == [1, 0]
    assert source.read(0) == picture(1)
    assert shade(source, 1) == 2


def test_tar_made_of_a_folder_and_with_steps_up_is_read(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", {"./cat/1.png": picture(1), "../dog/2.png": picture(2), "/abs/fox/3.png": picture(3)})
    source = open_data([str(tmp_path / "x.tar")])
    assert source.classes == ("cat", "dog", "fox")
    assert [shade(source, index) for index in range(3)] == [1, 2, 3]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "x.tar"]


def test_tar_long_and_odd_names_survive(tmp_path: Path) -> None:
    odd = b"caf\xe9 \n.png".decode("utf-8", "surrogateescape")
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in (odd, "a" * 300 + "/" + "b" * 150 + ".png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, BytesIO(picture()))
    source = open_data([str(tmp_path / "x.tar")])
    assert source.path(0).endswith(odd)
    assert len(source.path(1)) > 450
    assert source.image(1).size == (8, 6)


def test_tar_hard_links_point_to_their_images(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png"])
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a/1.png", tmp_path / "b/2.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a", "a")
        archive.add(tmp_path / "b", "b")
    source = open_data([str(tmp_path / "x.tar")])
    assert source.classes == ("a", "b")
    assert source.read(0) == source.read(1) == picture(0)


def test_tar_webdataset_integers_are_ordered_as_numbers(tmp_path: Path) -> None:
    members = {}
    for key, label in (("000", b"10"), ("001", b"2\n"), ("002", b"10"), ("a.b", b"007")):
        members |= {f"{key}.jpg": picture(image_format="JPEG"), f"{key}.cls": label, f"{key}.json": b"{}"}
    source = open_data([str(make_tar(tmp_path / "x.tar", members))], labelled=True)
    assert source.classes == ("2", "7", "10")
    assert labels(source) == [2, 0, 2, 1]


def test_tar_webdataset_names_and_missing_labels(tmp_path: Path) -> None:
    members = {"x/0.cls": b"cat", "x/0.png": picture(), "x/1.png": picture(), "x/1.cls": "Kätzchen".encode()}
    assert open_data([str(make_tar(tmp_path / "x.tar", members))]).classes == ("Kätzchen", "cat")
    source_path = str(make_tar(tmp_path / "y.tar", members | {"x/2.png": picture()}))
    assert open_data([source_path]).classes is None
    with pytest.raises(DataError, match=r"1 of the 3 images .*x/2\.png"):
        open_data([source_path], labelled=True)


def test_tar_shards_by_glob_braces_and_shell_are_the_same(tmp_path: Path) -> None:
    for number in range(12):
        make_tar(tmp_path / f"s-{number:03d}.tar", {f"{'ab'[number % 2]}/{number}.png": picture(number)})
    shell = [str(tmp_path / f"s-{number:03d}.tar") for number in range(12)]
    for references in ([f"{tmp_path}/*.tar"], [f"{tmp_path}/s-{{000..011}}.tar"], shell):
        source = open_data(references, labelled=True)
        assert [shade(source, index) for index in range(12)] == list(range(12))
        assert labels(source) == [0, 1] * 6
        assert isinstance(source, TarSource)
    assert len(open_data([f"{tmp_path}/s-{{000,001,007}}.tar"])) == 3
    assert len(open_data([f"{tmp_path}/s-0{{0{{1,2}},11}}.tar"])) == 3
    assert len(open_data([f"{tmp_path}/s-00{{0..4}}.tar", f"{tmp_path}/s-01?.tar"])) == 7


def test_tar_brace_range_names_the_missing_shard(tmp_path: Path) -> None:
    make_tar(tmp_path / "s-0.tar", {"1.png": picture()})
    with pytest.raises(DataError, match=r"s-1\.tar' does not exist") as error:
        open_data([f"{tmp_path}/s-{{0..1}}.tar"])
    assert "s-0.tar" in error.value.hint
    with pytest.raises(DataError, match=r"s-1\.tar"):
        open_data([f"{tmp_path}/s-{{0..99999999999}}.tar"])
    with pytest.raises(DataError, match="No file matches"):
        open_data([f"{tmp_path}/t-*.tar"])


def test_tar_splits_follow_the_top_folders(tmp_path: Path) -> None:
    make_tar(tmp_path / "train.tar", {"train/a/1.png": picture(1), "train/b/2.png": picture(2)})
    make_tar(tmp_path / "val.tar", {"val/a/3.png": picture(3)})
    both, val = f"{tmp_path}/*.tar", f"{tmp_path}/val.tar"
    assert len(open_data([both])) == 2
    evaluated = open_data([both], role="eval")
    assert (len(evaluated), shade(evaluated, 0), evaluated.classes) == (1, 3, ("a",))
    assert len(open_data([both], split="val")) == 1
    assert len(open_data([val], role="eval")) == 1
    for split in (None, "train"):  # as for a folder
        with pytest.raises(DataError, match="no split 'train': it has val"):
            open_data([val], split=split)


def test_tar_split_folder_is_no_class(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", {"train/1.png": picture(), "train/2.png": picture()})
    assert open_data([str(tmp_path / "x.tar")]).classes is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests' threads may live
def test_tar_is_read_alike_after_fork_and_pickle(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar", {f"{number}.png": picture(number) for number in range(5)})
    source = open_data([str(tmp_path / "x.tar")])
    assert shade(source, 0) == 0
    assert shade(pickle.loads(pickle.dumps(source)), 3) == 3
    child = os.fork()
    if child == 0:
        os._exit(0 if all(shade(source, index) == index for index in range(5)) else 1)
    assert shade(source, 4) == 4
    assert os.waitpid(child, 0)[1] == 0


def test_tar_past_the_open_files_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.data.sources.formats.tar._MAX_OPEN_SHARDS", 1)
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", {f"{number}.png": picture(number)})
    source = open_data([f"{tmp_path}/*.tar"])
    assert [shade(source, index) for index in (0, 1, 2, 1, 0)] == [0, 1, 2, 1, 0]


def test_tar_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "x.tar", {f"a/{number}.png": picture(number) for number in range(3)})
    content = shard.read_bytes()
    end = content.rstrip(b"\0").__len__() // 512 * 512 + 512
    for length in [*range(0, end + 1, 512), 100, 700, end - 200]:
        shard.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"Shard .*x\.tar' is cut short or damaged"):
            open_data([str(shard)])
    shard.write_bytes(content[: end + 1024])
    assert len(open_data([str(shard)])) == 3


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 3 * 1024 + 511), value=st.integers(0, 255))
def test_tar_damaged_never_ends_in_a_bug(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shard = make_tar(folder / "x.tar", {f"a/{number}.png": picture(number) for number in range(3)})
    content = bytearray(shard.read_bytes())
    content[place] = value
    shard.write_bytes(content)
    try:
        source = open_data([str(shard)])
    except DataError:
        return
    assert len(source) <= 3
    for index in range(len(source)):
        with suppress(BadImage):
            assert source.image(index).mode == "RGB"


def test_tar_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "x.tar", {f"a/{number}.png": picture(number) for number in range(3)})
    content = bytearray(shard.read_bytes())
    content[1024:1536] = b"\xff" * 512
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged: no header at byte 1,024"):
        open_data([str(shard)])


def test_tar_compressed_is_refused_with_the_way_out(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "x.tar", {"1.png": picture()})
    for name in ("y.tar.gz", "z.tar"):
        (tmp_path / name).write_bytes(gzip.compress(shard.read_bytes()))
        with pytest.raises(DataError, match="compressed") as error:
            open_data([str(tmp_path / name)])
        assert "gunzip" in error.value.hint


def test_tar_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No images in"):
        open_data([str(make_tar(tmp_path / "x.tar", {"a.txt": b"x"}))])


def test_tar_gone_after_opening_is_a_bad_image(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "x.tar", {"1.png": picture()})
    source = open_data([str(shard)])
    shard.unlink()
    with pytest.raises(BadImage, match="No such file"):
        source.read(0)


# Lists and stdin


def test_list_paths_are_relative_to_the_list_then_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, ["data/a b.png", "work/c.png", "data/d.png"])
    monkeypatch.chdir(tmp_path / "work")
    list_path = tmp_path / "data" / "list.txt"
    list_path.write_text(f"# heading\na b.png\r\n\nc.png\n{tmp_path}/data/d.png\nnone.png")
    source = open_data([str(list_path)])
    assert [shade(source, index) for index in range(3)] == [0, 1, 2]
    assert [source.path(index) for index in (1, 3)] == ["c.png", "none.png"]
    with pytest.raises(BadImage, match="no such file"):
        source.read(3)


def test_list_labels_are_names(tmp_path: Path) -> None:
    make_folder(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "l.tsv").write_bytes(b"\xef\xbb\xbf1.png\tdog\tx\n2.png\tant \n3.png\tdog\n")
    source = open_data([str(tmp_path / "l.tsv")], labelled=True)
    assert source.classes == ("ant", "dog")
    assert labels(source) == [1, 0, 1]
    assert shade(source, 0) == 0


def test_list_with_labels_in_some_lines_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("1.png\tdog\n2.png\n3.png\tcat\n")
    assert open_data([str(tmp_path / "l.txt")]).classes is None
    with pytest.raises(DataError, match=r"1 of the 3 images .*'2\.png'"):
        open_data([str(tmp_path / "l.txt")], labelled=True)


def test_list_empty_or_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\n# nothing\n")
    with pytest.raises(DataError, match="lists no images"):
        open_data([str(tmp_path / "l.txt")])
    (tmp_path / "l.txt").write_bytes(b"a\0b")
    with pytest.raises(DataError, match="NUL") as error:
        open_data([str(tmp_path / "l.txt")])
    assert error.value.hint.endswith(f"-0 - < {tmp_path / 'l.txt'}")


def test_stdin_newlines_keep_spaces_and_tabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [" a b .png", "#c.png", "d\te.png"]
    make_folder(tmp_path, names)
    monkeypatch.chdir(tmp_path)
    source = open_data(["-"], stdin=BytesIO("\n".join([*names, "", ""]).encode()))
    assert [source.path(index) for index in range(3)] == names
    assert [shade(source, index) for index in range(3)] == [0, 1, 2]
    assert source.name == "-"


@pytest.mark.parametrize("name", ["l.txt", "l.tsv", "l.csv", "-"])
def test_byte_order_mark_of_an_editor_is_no_part_of_the_first_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_folder(tmp_path, ["a.png", "b.png"])
    monkeypatch.chdir(tmp_path)
    lines = b"\xef\xbb\xbf" + b"\r\n".join([*([b"path"] if name == "l.csv" else []), b"a.png", b"b.png", b""])
    if name != "-":
        Path(name).write_bytes(lines)
    source = open_data([name], stdin=BytesIO(lines))
    assert [Path(source.path(index)).name for index in range(len(source))] == ["a.png", "b.png"]
    assert [shade(source, index) for index in range(2)] == [0, 1]


@pytest.mark.skipif(MACOS, reason="macOS refuses such names")
def test_stdin_nul_keeps_newlines_and_foreign_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [b"a\nb.png", b"caf\xe9.png", b"c.png\n"]
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(names):
        Path(os.fsdecode(name)).write_bytes(picture(number))
    source = open_data(["-"], stdin=BytesIO(b"\0".join([*names, b""])), nul_separated=True)
    assert [os.fsencode(source.path(index)) for index in range(3)] == names
    assert [shade(source, index) for index in range(3)] == [0, 1, 2]
    assert [os.fsencode(open_data(["."]).path(index)) for index in range(2)] == [b"./" + name for name in names[:2]]


def test_stdin_empty_or_of_the_other_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No paths on stdin"):
        open_data(["-"], stdin=BytesIO(b"\n\n"))
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    with pytest.raises(DataError, match="separated by NUL") as error:
        open_data(["-"], stdin=BytesIO(b"a.png\0b.png\0"))
    assert error.value.hint == "Add -0."
    for content in (b"b.png\0a.png\0", b"\x7fELF\2\1\1\0", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"):
        with pytest.raises(DataError, match="neither a list of paths nor an image") as error:
            open_data(["-"], stdin=BytesIO(content))
        assert "-0" in error.value.hint
    with pytest.raises(DataError, match="separated by newlines") as error:
        open_data(["-"], stdin=BytesIO(b"a.png\nb.png\n"), nul_separated=True)
    assert error.value.hint == "Leave -0 out."
    with pytest.raises(UsageError, match="twice"):
        open_data(["-", "-"], stdin=BytesIO(b"a.png"))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"])
def test_stdin_may_hold_the_bytes_of_one_image(image_format: str) -> None:
    for nul_separated in (False, True):
        content = picture(200, image_format)
        source = open_data(["-"], stdin=BytesIO(content), nul_separated=nul_separated)
        assert (len(source), source.path(0), source.name) == (1, "stdin", "-")
        assert source.read(0) == content
        assert shade(source, 0) == pytest.approx(200, abs=3)


def test_stdin_paths_that_begin_like_an_image_are_paths() -> None:
    names = ["BMW/1.png", "GIF8/2.png", "II/3.png", "RIFF/4.png", "P6/5.png", "P6", "P5 1 2.png", "P7", "PF"]
    for name in names:
        source = open_data(["-"], stdin=BytesIO("\n".join([name, *names]).encode()))
        assert [source.path(index) for index in range(len(source))] == [name, *names]


@pytest.mark.parametrize(
    ("names", "nul_separated"),
    [
        (["P1 2024 11 05.jpg", "b.jpg"], False),
        (["P1 2024 11 05.jpg", "b.jpg"], True),
        (["P6 2024 11 05 06.jpg", "b.jpg"], False),
        (["P1", "2", "3"], False),
        (["P2", "2", "3"], False),
    ],
)
def test_stdin_paths_that_read_like_a_whole_header_are_paths_if_the_first_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], nul_separated: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    content = "".join(name + ("\0" if nul_separated else "\n") for name in names).encode()
    for name in names:
        (tmp_path / name).write_bytes(picture(200, "PNG"))
    source = open_data(["-"], stdin=BytesIO(content), nul_separated=nul_separated)
    assert [source.path(index) for index in range(len(source))] == names


@pytest.mark.parametrize("content", [b"P1\n2 2\n0 1 1 0\n", b"P2 2 2 255\n0 9 9 0\n", b"P5\n2 1\n255\n\0\xff"])
def test_stdin_image_with_a_textual_header_is_an_image(content: bytes) -> None:
    source = open_data(["-"], stdin=BytesIO(content))
    assert (source.path(0), source.read(0)) == ("stdin", content)


def test_stdin_image_that_is_cut_off_is_a_bad_image() -> None:
    source = open_data(["-"], stdin=BytesIO(picture(200, "JPEG")[:-40]))
    with pytest.raises(BadImage):
        source.image(0)


# References


def test_reference_images_are_opened_one_by_one(tmp_path: Path) -> None:
    make_folder(tmp_path, ["b.png", "a.jpg", "c[1].png"])
    source = open_data([f"{tmp_path}/b.png", f"{tmp_path}/a.jpg", f"{tmp_path}/c[1].png"])
    assert paths(source, tmp_path) == ["b.png", "a.jpg", "c[1].png"]
    assert paths(open_data([f"{tmp_path}/*.*g"]), tmp_path) == ["a.jpg", "b.png", "c[1].png"]


def test_reference_sample_is_drawn_and_labelled() -> None:
    source = open_data(["sample"], labelled=True, sample_size=32)
    assert source.image(0).size == (32, 32)
    assert len(source) > len(open_data(["sample"], role="eval"))


def test_reference_missing_suggests_a_neighbour(tmp_path: Path) -> None:
    make_folder(tmp_path, ["photos/1.png"])
    with pytest.raises(DataError, match=r"photo' does not exist") as error:
        open_data([f"{tmp_path}/photo"])
    assert error.value.hint == f"Did you mean '{tmp_path}/photos'?"
    with pytest.raises(DataError) as error:
        open_data([f"{tmp_path}/phtos/x/1.png"])
    assert f"{tmp_path}/photos" in error.value.hint
    with pytest.raises(DataError) as error:
        open_data(["sampel"])
    assert "'sample'" in error.value.hint


def test_reference_of_no_known_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match="no format"):
        open_data([f"{tmp_path}/a.pdf"])
    with pytest.raises(UsageError, match="No DATA"):
        open_data([])


@settings(max_examples=200, deadline=None)
@given(reference=st.text(alphabet="ab{},.*[]-0123/", max_size=12))
def test_reference_nonsense_never_ends_in_a_bug(reference: str) -> None:
    with pytest.raises(DataError):
        open_data([f"/nowhere/{reference}"])


# Several sources, and parts of one


def test_concat_unites_class_names(tmp_path: Path) -> None:
    make_folder(tmp_path, ["one/b/1.png", "one/d/2.png"])
    make_tar(tmp_path / "two.tar", {"c/3.png": picture(3), "b/4.png": picture(4), "a/5.png": picture(5)})
    source = open_data([f"{tmp_path}/one", f"{tmp_path}/two.tar"], labelled=True)
    assert isinstance(source, Concat)
    assert source.classes == ("a", "b", "c", "d")
    assert labels(source) == [1, 3, 2, 1, 0]
    assert [shade(source, index) for index in range(5)] == [0, 1, 3, 4, 5]
    assert source.path(4) == f"{tmp_path}/two.tar/a/5.png"
    assert source.locate(3) == (1, 1)
    with pytest.raises(IndexError):
        source.path(5)


def test_concat_with_an_unlabelled_part_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, ["one/a/1.png", "one/b/1.png", "two/2.png"])
    references = [f"{tmp_path}/one", f"{tmp_path}/two"]
    source = open_data(references)
    assert source.classes is None
    assert labels(source) == [None, None, None]
    with pytest.raises(DataError, match="two' has no labels"):
        open_data(references, labelled=True)


def test_subset_keeps_order_and_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png", "b/2.png", "c/3.png"])
    whole = open_data([str(tmp_path)])
    part = Subset(whole, np.array([2, 0]))
    assert (len(part), part.classes, labels(part)) == (2, ("a", "b", "c"), [2, 0])
    assert paths(part, tmp_path) == ["c/3.png", "a/1.png"]
    assert [shade(part, 0), shade(part, 1)] == [2, 0]
    assert part.fingerprint() != whole.fingerprint()
    with pytest.raises(IndexError):
        Subset(whole, np.array([3]))


def test_fingerprint_follows_paths_and_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/1.png", "b/2.png"])
    first = open_data([str(tmp_path)]).fingerprint()
    assert open_data([str(tmp_path)]).fingerprint() == first
    make_folder(tmp_path, ["b/3.png"])
    assert open_data([str(tmp_path)]).fingerprint() != first


@given(names=st.lists(st.binary(max_size=10), max_size=20))
def test_packed_names_are_given_back(names: list[bytes]) -> None:
    packed = PackedNames(names)
    assert [packed[index] for index in range(len(packed))] == names


def test_class_order_is_numeric_only_for_integers() -> None:
    assert class_order(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert class_order(["10", "9", "x"]) == ("10", "9", "x")


def test_fingerprints_of_folders_tars_and_subsets_are_those_of_paths_and_labels(tmp_path):
    for number, name in enumerate(
        [b"a b/1.jpg", b"a b/\xff2.jpg" if not MACOS else b"a b/2.jpg", "\u00e9/deep/3.jpg".encode(), b"4.png"]
    ):
        place = os.path.join(os.fsencode(tmp_path), b"folder", name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file, format="PNG")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
            shard.add(os.path.join(os.fsencode(tmp_path), b"folder", b"a b/1.jpg"), name)
    (tmp_path / "classed").symlink_to(tmp_path / "folder" / "a b")
    sources = [open_data([str(tmp_path / each)]) for each in ("folder", "classed", "shard.tar")]
    assert sources[2].classes == ("cat", "dog")
    for labels in (("a", "b"), ("b", "a")):  # the list's own, not those of the shard
        lines = [
            f"{tmp_path / 'shard.tar'}/{name}\t{label}\n"
            for name, label in zip(("cat/1.png", "dog/3.png"), labels, strict=True)
        ]
        (tmp_path / "list.tsv").write_text("".join(lines))
        sources.append(open_data([str(tmp_path / "list.tsv")], labelled=True))
    assert sources[-1].fingerprint() != sources[-2].fingerprint()
    sources.append(open_data([str(tmp_path / "classed"), str(tmp_path / "shard.tar")]))
    for source in (*sources, *(Subset(source, np.arange(len(source))[::-1]) for source in sources)):
        digest = hashlib.sha256()
        for index in range(len(source)):
            digest.update(f"{source.path(index)}\0{source.label(index)}\n".encode(errors="surrogateescape"))
        assert source.fingerprint() == digest.hexdigest()
