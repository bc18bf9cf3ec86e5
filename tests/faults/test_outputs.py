"""What -o may name: pipes, devices, links, folders, inputs, files that exist; alike in every command."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beitcli.cli.app import main
from tests.helpers.forked import forked

pytestmark = pytest.mark.faults

PNG = b"\x89PNG"


def uses(get: Callable, image: Path) -> dict[str, tuple[list[object], str]]:
    """A command line without -o, and the suffix of its file."""
    return {
        "mask-preview": (["mask-preview", image, "--grid", "2,2", "--min-block", 1], ".png"),
        "attn-map": (["attn-map", image, "--model", get("pretrained_run")], ".npy"),
        "tokenize": (["tokenize", image, "--tokenizer", get("tokenizer_run")], ".npz"),
        "tokenize-lines": (["tokenize", image, "--tokenizer", get("tokenizer_run")], ".jsonl"),
    }


each_use = pytest.mark.parametrize("use", ["mask-preview", "attn-map", "tokenize", "tokenize-lines"])


@each_use
def test_a_pipe_is_written_into_and_stays(
    beit: Callable, request: pytest.FixtureRequest, picture: Callable, tmp_path: Path, use: str
) -> None:
    argv, suffix = uses(request.getfixturevalue, picture("a.png"))[use]
    pipe, got = tmp_path / f"pipe{suffix}", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    ended = beit(*argv, "-o", pipe)
    reader.join(30)
    assert (ended.code, ended.err) == (
        0,
        "" if "tokenize" not in use else f"Made '{pipe}': 1 image, 4 x 4 tokens of 16 codes each.\n",
    )
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert got[0][:2] in (b"PK", b'{"', PNG[:2], b"\x93N")


@each_use
def test_a_link_is_followed_and_an_existing_file_is_refused_without_overwrite(
    beit: Callable, request: pytest.FixtureRequest, picture: Callable, tmp_path: Path, use: str
) -> None:
    argv, suffix = uses(request.getfixturevalue, picture("a.png"))[use]
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / f"target{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(target)
    assert beit(*argv, "-o", link).code == 0
    made = target.read_bytes()
    assert link.is_symlink()
    assert made
    for place in (link, target):
        target.write_text("mine")
        refused = beit(*argv, "-o", place)
        assert (refused.code, refused.out) == (2, "")
        assert f"'{place}' exists already" in refused.err
        assert "--overwrite" in refused.err
        assert target.read_text() == "mine"
        assert beit(*argv, "-o", place, "--overwrite").code == 0
        assert (target.read_bytes()[:8], link.is_symlink()) == (made[:8], True)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == [target.name]


def test_devices_are_written_into(beit: Callable, picture: Callable) -> None:
    before = os.lstat("/dev/null")
    assert beit("mask-preview", picture("a.png"), "-o", "/dev/null").code == 0
    assert (os.lstat("/dev/null").st_mode, os.lstat("/dev/null").st_ino) == (before.st_mode, before.st_ino)
    ended = forked(lambda: main(["mask-preview", str(picture("a.png")), "-o", "/dev/full"]))
    assert (ended.code, "'/dev/full' cannot be written: No space left" in ended.err) == (4, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", "-"])
def test_stdout_by_any_name_gets_the_picture_behind_what_is_there(picture: Callable, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        file.write(b"before")
        file.flush()
        argv = [sys.executable, "-m", "beitcli", "mask-preview", str(picture("a.png")), "-o", name]
        subprocess.run(argv, stdout=file, check=True)
    content = out.read_bytes()
    assert content.startswith(b"before" + PNG)
    assert b'"num_masked"' not in content


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["", "overwrite"])
def test_inputs_are_never_overwritten(
    beit: Callable, pretrained_run: Path, tokenizer_run: Path, picture: Callable, tmp_path: Path, more: list[str]
) -> None:
    """By their own names, by links, by hard links and by other spellings: images, shards, weights, settings."""
    image, run = picture("a.png"), shutil.copytree(pretrained_run, tmp_path / "run")
    weights = run / "checkpoints" / "step-0000004" / "model.safetensors"
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(image, "red/a.png")
    (tmp_path / "l.txt").write_text(f"{image}\n")
    os.link(image, tmp_path / "hard.png")
    (tmp_path / "shard.png").symlink_to("s.tar")
    (tmp_path / "weights.png").symlink_to(weights)
    (tmp_path / "settings.npy").symlink_to(run / "config.toml")
    shutil.copy(tokenizer_run / "checkpoints" / "step-0000004" / "model.safetensors", tmp_path / "t.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for argv in (
        ["mask-preview", tmp_path / "s.tar", "-o", tmp_path / "s.tar"],
        ["mask-preview", tmp_path / "l.txt", "-o", tmp_path / "l.txt"],
        ["mask-preview", image, "-o", tmp_path / "run" / ".." / "a.png"],
        ["mask-preview", image, "-o", tmp_path / "hard.png"],
        ["mask-preview", tmp_path / "s.tar", "-o", tmp_path / "shard.png"],
        ["mask-preview", image, "--model", run, "-o", weights],
        ["mask-preview", image, "--model", run, "-o", tmp_path / "weights.png"],
        ["attn-map", image, "--model", run, "-o", tmp_path / "settings.npy"],
        ["attn-map", image, "--model", run, "-o", f"{tmp_path}/"],
        ["tokenize", image, "--tokenizer", tokenizer_run, "-o", image],
        ["export", run, "--to", "timm", "-o", weights.parent],
    ):
        ended = beit(*argv, *more)
        assert ended.code == 2, (argv, ended.err)
        assert "Traceback" not in ended.err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, argv


def test_tokenizer_is_not_replaced_by_its_tokens(
    beit: Callable, tokenizer_run: Path, picture: Callable, tmp_path: Path
) -> None:
    run = shutil.copytree(tokenizer_run, tmp_path / "run")
    weights = run / "checkpoints" / "step-0000004" / "model.safetensors"
    before = weights.read_bytes()
    ended = beit("tokenize", picture("a.png"), "--tokenizer", run, "-o", weights, "--overwrite")
    assert (ended.code, "would overwrite the input" in ended.err) == (2, True)
    assert weights.read_bytes() == before


def test_a_folder_of_outputs_is_refused_whole_and_rerun_with_overwrite(
    beit: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    data, out = labelled_folder / "red", tmp_path / "out"
    argv = ["mask-preview", data, "-o", out]
    assert beit(*argv).code == 0
    count = len(list(out.iterdir()))
    (out / "00.png").write_text("mine")
    (out / "01.png").unlink()
    refused = beit(*argv)
    assert (refused.code, f"'{out / '00.png'}' and {count - 2} more exist already" in refused.err) == (2, True)
    assert not (out / "01.png").exists()
    assert beit(*argv, "--overwrite").code == 0
    assert (out / "00.png").read_bytes()[:4] == (out / "01.png").read_bytes()[:4] == PNG


def test_a_link_in_a_folder_of_outputs_is_refused_or_replaced_and_never_followed(
    beit: Callable, picture: Callable, tmp_path: Path
) -> None:
    image, out = picture("a.png"), tmp_path / "out"
    out.mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    (out / "a.png").symlink_to(tmp_path / "thesis.txt")
    assert beit("mask-preview", image, "-o", out).code == 2
    assert beit("mask-preview", image, "-o", out, "--overwrite").code == 0
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (out / "a.png").read_bytes()[:4] == PNG


def test_files_and_folders_in_each_others_place_are_refused(
    beit: Callable, labelled_folder: Path, picture: Callable, tmp_path: Path
) -> None:
    image, file = picture("a.png"), tmp_path / "one.png"
    file.write_text("mine")
    assert beit("mask-preview", labelled_folder, "-o", file).code == 2
    assert beit("mask-preview", image, "-o", f"{tmp_path}/new/").code == 0
    assert (tmp_path / "new" / "a.png").is_file()
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    ended = beit("mask-preview", image, "-o", tmp_path / "out", "--overwrite")
    assert (ended.code, "is a folder" in ended.err) == (2, True)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["out.tiff", "out.safetensors", "out.tar"])
def test_mask_preview_refuses_a_suffix_that_does_not_fit(
    beit: Callable, picture: Callable, tmp_path: Path, name: str
) -> None:
    ended = beit("mask-preview", picture("a.png"), "-o", tmp_path / name)
    assert (ended.code, "ends in no format" in ended.err) == (2, True)
    assert not (tmp_path / name).exists()


def test_export_replaces_its_own_files_with_overwrite_and_leaves_others(
    beit: Callable, finetuned_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ["export", finetuned_run, "--to", "official", "-o", out]
    assert beit(*argv).code == 0
    (out / "notes.txt").write_text("mine")
    (out / "model.pth").write_text("torn")
    assert beit(*argv).code == 2
    assert beit(*argv, "--overwrite").code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "model.pth").read_bytes()[:2] == b"PK"


def test_export_to_official_on_a_full_disk_is_4(finetuned_run: Path, tmp_path: Path) -> None:
    argv = ["export", str(finetuned_run), "--to", "official", "-o", str(tmp_path / "out")]
    ended = forked(lambda: main(argv), file_size=4096)
    assert (ended.code, "cannot be written" in ended.err) == (4, True), ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_token_file_is_begun_anew_with_overwrite(
    beit: Callable, tokenizer_run: Path, picture: Callable, tmp_path: Path
) -> None:
    first, second = picture("a.png"), picture("b.png", seed=2)
    for name in ("t.jsonl", "t.npz"):
        argv = ["--tokenizer", tokenizer_run, "-o", tmp_path / name]
        assert beit("tokenize", first, *argv).code == 0
        assert beit("tokenize", second, *argv).code == 2
        assert beit("tokenize", second, *argv, "--overwrite").code == 0
    assert "a.png" not in (tmp_path / "t.jsonl").read_text()
    with np.load(tmp_path / "t.npz") as stored:
        assert stored["paths"].tolist() == [str(second)]


@pytest.mark.parametrize("suffix", [".jsonl", ".npz"])
def test_tokens_that_are_replaced_stay_until_the_job_has_ended(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"tokens{suffix}"
    words = ("tokenize", "--tokenizer", tokenizer_run, "-o", output)
    assert beit(*words, labelled_folder).code == 0
    before = output.read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    assert beit(*words, broken, "--overwrite", "--on-bad", "fail").code == 3
    assert output.read_bytes() == before
    assert beit(*words, labelled_folder, "--overwrite", "--limit", 3).code == 0
    assert output.read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", output.name]


def test_an_empty_file_is_free(beit: Callable, tmp_path: Path) -> None:
    (tmp_path / "new.png").touch()
    assert beit("mask-preview", "sample", "--limit", 1, "-o", tmp_path / "new.png").code == 0
    assert (tmp_path / "new.png").stat().st_size > 0
