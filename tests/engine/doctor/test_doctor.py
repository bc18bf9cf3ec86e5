"""`beit doctor` on a folder with one of each thing that can be wrong with an image."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.cli.app import main
from beitcli.data.sources.open_data import open_data
from beitcli.engine.doctor.marks import MARKS
from tests.cli.test_contract import at_terminal
from tests.conftest import Ended, save_picture

Beit = Callable[..., Ended]
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth blots of colour with noise over them, as no other seed has."""
    draw = np.random.default_rng(seed)
    blots = Image.fromarray(draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(blots).astype(int) + draw.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def page_data(page: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    return data


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images to train on and 6 to measure on, and one of each that is wrong."""
    root = tmp_path_factory.mktemp("mess")
    for split, count in (("train", 12), ("val", 3)):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed = 1000 * (split == "val") + 100 * number + index
                photo(seed).save(root / split / name / f"{name}-{index:02d}.jpg", quality=92)
    cats, val = root / "train" / "cat", root / "val" / "cat"
    whole = (cats / "cat-00.jpg").read_bytes()
    (cats / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (cats / "empty.png").write_bytes(b"")
    shutil.copy(cats / "cat-01.jpg", cats / "same-bytes.jpg")
    Image.open(cats / "cat-02.jpg").save(cats / "same-pixels.png")
    Image.open(cats / "cat-03.jpg").resize((128, 96)).save(cats / "smaller.jpg", quality=60)
    shutil.copy(cats / "cat-04.jpg", val / "leak.jpg")
    Image.open(cats / "cat-05.jpg").save(val / "worse-leak.jpg", quality=50)
    photo(507).save(cats / "png", "PNG")
    (cats / "png").rename(cats / HOSTILE)
    photo(508).convert("CMYK").save(cats / "cmyk.jpg")
    photo(509, (20, 18)).save(cats / "tiny.png")
    photo(510, (600, 100)).save(cats / "long.jpg")
    Image.new("RGB", (64, 64), "red").save(cats / "flat.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 4000, (64, 80)).astype(np.uint16)).save(cats / "dark.tif")
    turned = photo(511)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(cats / "turned.jpg", exif=exif)
    clear = photo(512)
    clear.putalpha(100)
    clear.save(cats / "clear.png")
    pages = [photo(seed).convert("L") for seed in (513, 514, 515)]
    pages[0].save(cats / "stack.tif", save_all=True, append_images=pages[1:])
    (root / "train" / "notes.txt").write_text("not an image\n")
    return root


@pytest.fixture(scope="module")
def report(mess: Path) -> dict[str, object]:
    from beitcli.cli.console import to_dict
    from beitcli.config.doctor import DoctorConfig
    from beitcli.engine.doctor.run import doctor

    return to_dict(doctor(DoctorConfig(data=(str(mess),), workers=0)))


def names_of(report: dict[str, object], kind: str) -> list[str]:
    (found,) = [each for each in report["findings"] if each["kind"] == kind]
    assert found["images"] == len(found["examples"])
    return [Path(example["path"]).name for example in found["examples"]]


def test_each_thing_that_is_wrong_is_found_and_nothing_else(report: dict[str, object]):
    expected = {
        "unreadable": ["cut.jpg", "empty.png"],
        "misnamed": [HOSTILE],
        "one-colour": ["flat.png"],
        "dark": ["dark.tif"],
        "deep": ["dark.tif"],
        "tiny": ["tiny.png"],
        "long": ["long.jpg"],
        "stack": ["stack.tif"],
        "cmyk": ["cmyk.jpg"],
        "alpha": ["clear.png"],
        "rotated": ["turned.jpg"],
        "duplicates-bytes": ["same-bytes.jpg"],
        "duplicates-pixels": ["same-pixels.png"],
        "duplicates-near": ["smaller.jpg"],
        "overlap-bytes": ["leak.jpg"],
        "overlap-near": ["worse-leak.jpg"],
    }
    about_images = {each["kind"] for each in report["findings"] if each["images"]}
    assert about_images == set(expected)
    assert {kind: names_of(report, kind) for kind in expected} == expected


def test_exact_copies_within_a_group_of_near_ones_are_told_apart(tmp_path: Path, beit: Beit):
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(1).save(folder / "0.jpg", quality=95)
    for name in ("1.jpg", "2.jpg"):
        shutil.copy(folder / "0.jpg", folder / name)
    Image.open(folder / "0.jpg").save(folder / "3.png")
    for number in range(4, 10):
        Image.open(folder / "0.jpg").save(folder / f"{number}.jpg", quality=80 - number)
    shutil.copy(folder / "9.jpg", folder / "a.jpg")
    args = ("doctor", folder, "--workers", 0)
    (report,) = beit(*args, "-o", tmp_path / "page.html", "-o", tmp_path / "good.txt", "--json").lines
    (group,) = report["copies"]
    assert (group["same"], len(group["paths"])) == ("near", 11)
    assert names_of(report, "duplicates-bytes") == ["1.jpg", "2.jpg", "a.jpg"]
    assert names_of(report, "duplicates-pixels") == ["3.png"]
    assert names_of(report, "duplicates-near") == [f"{number}.jpg" for number in range(4, 10)]
    (bytes_,) = (each for each in report["findings"] if each["kind"] == "duplicates-bytes")
    assert [Path(each["why"]).name for each in bytes_["examples"]] == ["0.jpg", "0.jpg", "9.jpg"]
    assert len((tmp_path / "good.txt").read_text().splitlines()) == 11 - 3 - 1
    assert bytes_["way_out"] == f"A list of the good ones (-o {tmp_path / 'good.txt'}) has one of each."
    kept = beit(*args, "-o", tmp_path / "all.txt", "--drop", "unreadable", "--json").lines[0]["findings"]
    assert "A list of the good ones (-o good.tsv) has one of each." in {each["way_out"] for each in kept}
    (drawn,) = page_data(tmp_path / "page.html")["groups"]
    assert drawn["counts"] == [["byte for byte", 3], ["in every pixel", 1], ["nearly", 6]]
    assert (drawn["total"], len(drawn["images"])) == (11, 8)
    assert [image["why"] for image in drawn["images"][:5]] == [
        "", "byte for byte as 0.jpg", "byte for byte as 0.jpg", "in every pixel as 0.jpg", "nearly as 0.jpg",
    ]  # fmt: skip
    _, told = at_terminal(lambda: main(["doctor", str(folder), "--workers", "0"]))
    assert "3 byte for byte, 1 in every pixel, 6 nearly" in re.sub(r"\x1b\[[\d;]*m", "", told)


def test_the_figures_are_those_of_the_folder(report: dict[str, object]):
    assert report["splits"] == {"train": 38, "validation": 8}
    assert (report["images"], report["readable"], report["unreadable"]) == (46, 44, 2)
    assert report["classes"] == {"train": {"cat": 26, "dog": 12}, "validation": {"cat": 5, "dog": 3}}
    assert report["sizes"]["least"] == 18
    assert sum(report["sizes"]["histogram"].values()) == 44
    assert report["shared"] == 2
    assert any("1 file not read (.txt)" in line for line in report["left_aside"])


def test_processes_find_the_same_as_one(mess: Path, report: dict[str, object], beit: Beit):
    ended = beit("doctor", mess, "--workers", 2, "--json")
    assert ended.code == 3, ended.err
    (document,) = ended.lines
    assert document == report
    assert "error: 2 of 46 images cannot be read." in ended.err


def test_a_folder_that_is_fine_exits_with_0(labelled_folder: Path, beit: Beit):
    ended = beit("doctor", labelled_folder, "--json")
    assert ended.code == 0, ended.err
    assert {each["kind"] for each in ended.lines[0]["findings"]} == {
        *("few-images-to-pretrain", "few-images-to-train-tokenizer")
    }


def test_doctor_says_what_a_training_would_say_of_so_few_images(tmp_path: Path, beit: Beit):
    for number in range(110):
        save_picture(tmp_path / "photos" / f"{number}.jpg", (number, 90, 90), number, (40, 36))
    (document,) = beit("doctor", tmp_path / "photos", "--json").lines
    (told,) = (each for each in document["findings"] if each["kind"].startswith("few-images"))
    args = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--workers", 0)
    planned = beit(
        "pretrain", tmp_path / "photos", *args, "--target", "pixels", "--dry-run", "--json", "--device", "cpu"
    )
    (few,) = (each for each in planned.lines[0]["preflight"] if each["kind"] == "few-images")
    few_of = few["what"].replace("105 training images", "105 images to train on (5 of 110 held out)")
    assert (told["what"], told["way_out"]) == (f"To pretrain on: {few_of}", few["way_out"])
    assert few["what"].startswith("105 training images are few")


def test_doctor_refuses_as_a_training_would(tmp_path: Path, beit: Beit):
    save_picture(tmp_path / "photos" / "a.jpg", (90, 90, 90), 1)
    (document,) = beit("doctor", tmp_path / "photos", "--json").lines
    assert [each["kind"] for each in document["findings"]] == ["one-image-to-pretrain", "one-image-to-train-tokenizer"]
    to_pretrain, to_tokenize = document["findings"]
    assert to_pretrain["what"].startswith("1 image is too few to pretrain on: the model would memorise it")
    assert to_tokenize["what"] == "1 image is too few for a tokenizer, too."
    assert to_tokenize["way_out"] == "A trial: `beit train-tokenizer sample --recipe tiny`."


def test_of_a_folder_without_any_image_nothing_is_said_but_that(tmp_path: Path, beit: Beit):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("This is no photograph.\n")
    ended = beit("doctor", tmp_path / "photos", "--json")
    assert ended.code == 3
    assert [each["kind"] for each in ended.lines[0]["findings"]] == ["unreadable"]
    assert ended.err.splitlines()[-1].strip() == "Replace what is damaged."


def test_marks_of_one_image_are_in_the_singular():
    assert MARKS["rotated"].title_of_one == "is rotated or mirrored by its EXIF orientation"
    assert MARKS["deep"].title_of_one == "has more than 8 bits"


def test_a_list_of_the_good_images_is_data_with_labels(mess: Path, tmp_path: Path, beit: Beit):
    ended = beit("doctor", mess, "-o", tmp_path / "good.tsv", "--workers", 0)
    assert ended.code == 3, ended.err
    assert f"'{tmp_path / 'good.tsv'}' lists the others" in ended.err
    listed = open_data([str(tmp_path / "good.tsv")], labelled=True)
    left = {Path(listed.path(index)).name for index in range(len(listed))}
    everything = {path.name for path in (mess / "train").rglob("*") if path.is_file() and path.suffix != ".txt"}
    gone = {"cut.jpg", "empty.png", "same-bytes.jpg", "same-pixels.png", "cat-04.jpg", "cat-05.jpg"}
    assert everything - left == gone
    assert listed.classes == ("cat", "dog")
    labels = {Path(listed.path(i)).parent.name: listed.classes[listed.label(i)] for i in range(len(listed))}
    assert labels == {"cat": "cat", "dog": "dog"}
    again = beit("doctor", tmp_path / "good.tsv", "--json", "--workers", 0)
    assert again.code == 0, again.err


def test_drop_chooses_what_the_list_leaves_out(mess: Path, tmp_path: Path, beit: Beit):
    drop = "unreadable,tiny,near-duplicates"
    beit("doctor", mess, "--split", "train", "-o", tmp_path / "good.txt", "--drop", drop, "--workers", 0)
    lines = (tmp_path / "good.txt").read_text().splitlines()
    assert len(lines) == 38 - 4
    assert not [line for line in lines if "\t" in line]
    assert not [line for line in lines if line.endswith(("tiny.png", "smaller.jpg", "cut.jpg", "empty.png"))]


def test_a_list_names_members_of_a_shard_that_every_command_reads(mess: Path, tmp_path: Path, beit: Beit):
    shard = tmp_path / "data.tar"
    with tarfile.open(shard, "w") as file:
        for path in sorted((mess / "train").rglob("*.jpg")):
            file.add(path, str(path.relative_to(mess / "train")))
    ended = beit("doctor", shard, "-o", tmp_path / "good.tsv", "--workers", 0)
    assert ended.code == 3, ended.err
    with_file = (tmp_path / "good.tsv").read_text() + f"{mess / 'train' / 'cat' / 'clear.png'}\tcat\n"
    (tmp_path / "good.tsv").write_text(with_file)
    listed = open_data([str(tmp_path / "good.tsv")], labelled=True)
    whole = open_data([str(shard)])
    by_name = {whole.path(index): index for index in range(len(whole))}
    assert len(listed) == len(whole) - 2 + 1  # without the cut one and the copy
    for index in range(len(listed) - 1):
        place = by_name[listed.path(index)]
        assert listed.read(index) == whole.read(place)
        assert listed.classes[listed.label(index)] == whole.classes[whole.label(place)]
    assert listed.path(len(listed) - 1).endswith("clear.png")


def test_an_image_that_no_shard_has_is_named(tmp_path: Path, beit: Beit):
    with tarfile.open(tmp_path / "data.tar", "w") as file:
        entry, content = tarfile.TarInfo("a.png"), io.BytesIO()
        photo(1).save(content, "PNG")
        entry.size = len(content.getvalue())
        file.addfile(entry, io.BytesIO(content.getvalue()))
    (tmp_path / "list.txt").write_text("data.tar/b.png\n")
    ended = beit("doctor", tmp_path / "list.txt")
    assert ended.code == 3
    assert "data.tar/b.png', which is not in that shard" in ended.err


def test_a_list_of_images_without_files_is_refused_before_they_are_read(
    tmp_path: Path, beit: Beit, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ended = beit("doctor", "sample", "-o", "good.tsv")
    assert (ended.code, ended.out) == (2, "")
    assert "have no files" in ended.err
    assert not list(tmp_path.iterdir())


def test_a_list_names_members_with_absolute_names_of_a_shard_behind_a_link(
    tmp_path: Path, beit: Beit, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    with tarfile.open(tmp_path / "far" / "data.tar", "w") as file:
        for number, name in enumerate(("/abs/a.png", "../b.png", "c/../d.png")):
            entry, content = tarfile.TarInfo(name), io.BytesIO()
            photo(number).save(content, "PNG")
            entry.size = len(content.getvalue())
            file.addfile(entry, io.BytesIO(content.getvalue()))
    monkeypatch.chdir(tmp_path)
    ended = beit("doctor", "link/../data.tar", "-o", "good.txt", "--workers", 0)
    assert ended.code == 0, ended.err
    monkeypatch.chdir("/")
    names = (tmp_path / "good.txt").read_text().splitlines()
    assert all(name.startswith(f"{tmp_path / 'far' / 'data.tar'}/") for name in names)  # clean, up to the member's name
    listed, whole = open_data([str(tmp_path / "good.txt")]), open_data([str(tmp_path / "far" / "data.tar")])
    assert [listed.read(index) for index in range(3)] == [whole.read(index) for index in range(3)]


def test_a_list_of_a_folder_above_names_clean_paths(tmp_path: Path, beit: Beit, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    photo(1).save(tmp_path / "photos" / "cat" / "a.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ended = beit("doctor", "../photos", "-o", "good.tsv", "--workers", 0)
    assert ended.code == 0, ended.err
    assert (tmp_path / "here" / "good.tsv").read_text() == f"{tmp_path / 'photos' / 'cat' / 'a.png'}\tcat\n"


def test_a_list_leaves_out_classes_that_no_line_can_hold(tmp_path: Path, beit: Beit):
    for number, name in enumerate(("cat", "a\tb", "two\nlines", " spaces ")):
        (tmp_path / "data" / name).mkdir(parents=True)
        photo(number).save(tmp_path / "data" / name / "a.png")
    shard = tmp_path / "data.tar"  # whose classes are in files of their own
    with tarfile.open(shard, "w") as file:
        for number, name in enumerate(("cat", "a\tb", "two\nlines", "dog")):
            content = io.BytesIO()
            photo(number).save(content, "PNG")
            for ending, data in (("png", content.getvalue()), ("cls", name.encode())):
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    in_class = "as a list holds no TAB or line break in a class"
    for data, images, said in ((tmp_path / "data", 1, f"1 image, {in_class}"), (shard, 2, f"2 images, {in_class}")):
        ended = beit("doctor", data, "-o", tmp_path / "good.tsv", "--overwrite", "--workers", 0)
        assert ended.code == 0, ended.err
        lines = (tmp_path / "good.tsv").read_text().splitlines()
        assert len(lines) == images
        assert lines[0].endswith("\tcat")
        assert said in ended.err


def test_splits_of_each_reference_are_looked_at(tmp_path: Path, beit: Beit):
    for number, name in enumerate(("a/train", "a/val", "b", "c/val")):
        (tmp_path / name / "cat").mkdir(parents=True)
        for index in range(number + 1):
            photo(10 * number + index).save(tmp_path / name / "cat" / f"{number}-{index}.png")
    for words, splits in (
        ("a b", {"train": 1 + 3, "validation": 2}),
        ("b a", {"train": 1 + 3, "validation": 2}),
        ("a c", {"train": 1, "validation": 2 + 4}),
        ("b c", {"validation": 3 + 4}),
        ("a a/val", {"train": 1 + 2, "validation": 2}),
    ):
        ended = beit("doctor", *(tmp_path / name for name in words.split()), "--json", "--workers", 0)
        (document,) = ended.lines
        assert document["splits"] == splits, words
        assert document["images"] == sum(splits.values())


def test_the_page_is_one_file_in_which_names_are_text(mess: Path, tmp_path: Path, beit: Beit):
    page = tmp_path / "page.html"
    ended = beit("doctor", mess, "-o", page, "--workers", 0)
    assert ended.code == 3, ended.err
    text = page.read_text()
    plain = text.partition("<body>\n<noscript>")[2].partition("</noscript>")[0]
    assert '<tr><th scope="row">warning</th><td>' in plain
    assert " images, of which " in plain
    assert "<img src=x" not in text
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text)
    data = page_data(page)
    shown = {Path(image["path"]).name: image for finding in data["findings"] for image in finding["images"]}
    assert shown[HOSTILE]["picture"].startswith("data:image/jpeg;base64,")
    assert shown["cut.jpg"]["picture"] == ""
    assert shown["cut.jpg"]["why"].startswith("truncated")
    assert (shown["cut.jpg"]["missing"], shown[HOSTILE]["missing"]) == ("cannot be read", "")
    same = {tuple(kind for kind, _ in group["counts"]) for group in data["groups"]}
    assert same == {("byte for byte",), ("in every pixel",), ("nearly",)}


def test_the_page_says_what_it_leaves_to_json_and_why_a_picture_is_missing(
    tmp_path: Path, beit: Beit, monkeypatch: pytest.MonkeyPatch
):
    for number in range(103):
        (tmp_path / "data").mkdir(exist_ok=True)
        photo(number, (16, 12)).save(tmp_path / "data" / f"{number:03d}.png")
    monkeypatch.setattr("beitcli.engine.doctor.page._MOST_PICTURES", 10)
    ended = beit("doctor", tmp_path / "data", "-o", tmp_path / "page.html", "--workers", 0, "--json")
    (document,) = ended.lines
    data = page_data(tmp_path / "page.html")
    (tiny,) = (each for each in data["findings"] if each["kind"] == "tiny")
    (listed,) = (each for each in document["findings"] if each["kind"] == "tiny")
    assert (tiny["total"], tiny["named"], len(tiny["images"])) == (103, len(listed["examples"]), 24)
    missing = [image["missing"] for image in tiny["images"]]
    assert missing == [""] * 10 + ["the page shows 10 pictures at most"] * 14


def test_an_unreadable_image_is_told_as_such_past_the_most_pictures(
    tmp_path: Path, beit: Beit, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "data").mkdir()
    for number in range(3):
        photo(number, (64, 64)).save(tmp_path / "data" / f"{number}.png")
    (tmp_path / "data" / "bad.png").write_bytes(b"no picture")
    monkeypatch.setattr("beitcli.engine.doctor.page._MOST_PICTURES", 0)
    beit("doctor", tmp_path / "data", "-o", tmp_path / "page.html", "--workers", 0)
    data = page_data(tmp_path / "page.html")
    shown = {Path(image["path"]).name: image["missing"] for each in data["findings"] for image in each["images"]}
    assert shown["bad.png"] == "cannot be read"


def test_an_output_of_another_kind_is_refused_before_the_images_are_read(labelled_folder: Path, beit: Beit):
    ended = beit("doctor", labelled_folder, "-o", "report.pdf")
    assert ended.code == 2
    assert "Give a page that ends in .html, or a list that ends in .tsv or .txt." in ended.err


def test_validation_images_of_another_folder_are_compared(mess: Path, tmp_path: Path, beit: Beit):
    ended = beit("doctor", mess / "train", "--val", mess / "val", "--json", "--workers", 0)
    (document,) = ended.lines
    assert document["splits"] == {"train": 38, "val": 8}
    assert document["shared"] == 2


def test_doctor_imports_no_torch(labelled_folder: Path):
    script = (
        "import sys; from beitcli.cli.app import main; "
        f"code = main(['doctor', {str(labelled_folder)!r}, '--json', '--workers', '0']); "
        "sys.exit('torch is loaded' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_that_are_no_text_are_listed_as_they_are_and_shown(tmp_path: Path, beit: Beit):
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = os.path.join(os.fsencode(folder), b"\xff<b>.png")
    for name, seed in ((odd, 1), (os.path.join(os.fsencode(folder), b"two\tparts.png"), 2)):
        with open(name, "wb") as file:
            photo(seed).save(file, "PNG")
    ended = beit("doctor", folder, "-o", tmp_path / "good.txt", "-o", tmp_path / "page.html", "--workers", 0)
    assert ended.code == 0, ended.err
    assert (tmp_path / "good.txt").read_bytes() == odd + b"\n"
    assert "good.txt': 1 image, as a list holds no TAB" in ended.err
    assert "<b>" not in (tmp_path / "page.html").read_text()
    assert len(open_data([str(tmp_path / "good.txt")]).image(0).getbands()) == 3


def test_on_a_terminal_the_unreadable_images_are_told_once(labelled_folder: Path, tmp_path: Path):
    shutil.copytree(labelled_folder / "red", tmp_path / "photos")
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    code, told = at_terminal(lambda: main(["doctor", str(tmp_path / "photos"), "--workers", "0"]))
    assert code == 3
    assert told.count("cannot be read") == told.count("bad.jpg") == told.count("good.tsv") == 1
    assert "error: 1 unreadable image, as above." in re.sub(r"\x1b\[[\d;]*m", "", told)


def test_the_page_shows_an_image_that_is_stored_turned_upright(beit: Beit, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    upright = Image.new("RGB", (96, 48), "red")
    upright.paste("blue", (48, 0, 96, 48))
    exif = upright.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "data" / "turned.jpg", exif=exif)
    beit("doctor", tmp_path / "data", "-o", tmp_path / "page.html", "--workers", 0)
    (turned,) = [each for each in page_data(tmp_path / "page.html")["findings"] if each["kind"] == "rotated"]
    stored = base64.b64decode(turned["images"][0]["picture"].partition(",")[2])
    with Image.open(io.BytesIO(stored)) as shown:
        assert shown.size == (96, 48)
        left, right = (shown.convert("RGB").getpixel((x, 24)) for x in (12, 84))
    assert left[0] > 200 > 50 > left[2]
    assert right[2] > 200 > 50 > right[0]


def test_a_copy_of_another_class_is_a_conflict_of_labels(beit: Beit, tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            photo(700 + 10 * number + index).save(tmp_path / "data" / name / f"{index}.png")
    shutil.copy(tmp_path / "data" / "ant" / "1.png", tmp_path / "data" / "bee" / "copy.png")
    photo(702).save(tmp_path / "data" / "ant" / "again.png")  # a copy of its own class
    Image.open(tmp_path / "data" / "ant" / "1.png").resize((128, 96)).save(tmp_path / "data" / "ant" / "small.png")
    document = beit("doctor", tmp_path / "data", "-o", tmp_path / "page.html", "--json").lines[0]
    (found,) = [each for each in document["findings"] if each["kind"] == "label-conflict"]
    (shown,) = [each for each in page_data(tmp_path / "page.html")["findings"] if each["kind"] == "label-conflict"]
    ((ant, bee),) = shown["pairs"]
    assert (ant["path"][-9:], ant["why"]) == ("ant/1.png", "labelled 'ant'")
    assert (bee["path"][-12:], bee["why"]) == ("bee/copy.png", "labelled 'bee'")
    assert ant["picture"] == bee["picture"] != ""
    assert (found["images"], found["severity"]) == (1, "warning")
    assert found["examples"][0]["path"].endswith("bee/copy.png")
    assert re.fullmatch(r"labelled 'bee', its copy .*ant/1\.png 'ant'", found["examples"][0]["why"])


def test_doctor_says_of_trainings_what_the_whole_training_split_has(beit: Beit, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        (tmp_path / split).mkdir()
        for index in range(count):
            photo(800 + index).save(tmp_path / split / f"{index}.png")

    def told(*words: object) -> list[str]:
        findings = beit("doctor", tmp_path, *words, "--json").lines[0]["findings"]
        return [each["what"] for each in findings if each["kind"].endswith("-to-pretrain")]

    assert ["3 training images" in each for each in told()] == [True]
    assert told("--limit", 1) == told()
    assert told("--split", "val") == []
