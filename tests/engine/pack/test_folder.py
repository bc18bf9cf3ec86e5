"""The folder of a pack: what it goes on with after a stop, a kill or a failure."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from beitcli.cli.app import main
from beitcli.config.pack import PackConfig
from beitcli.engine.events import Event
from beitcli.engine.pack import run as run_of_pack
from beitcli.engine.pack.run import pack
from beitcli.engine.process_pool import is_stopped
from beitcli.errors import DataError, StorageError, UsageError
from tests.conftest import save_picture
from tests.helpers.forked import Child
from tests.helpers.packs import killed_behind_the_first_shard, packed


def test_a_killed_pack_goes_on_behind_its_finished_shards(split_folder: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    assert killed_behind_the_first_shard(split_folder, out) != 0
    assert not list(out.glob("*.tar"))
    first = out / ".partial" / "train-00000-of-00003.tar"
    stamp = first.stat().st_mtime_ns
    made = []
    write = run_of_pack.write_shard
    monkeypatch.setattr(
        run_of_pack, "write_shard", lambda packing, shard: made.append(shard.name) or write(packing, shard)
    )
    with pytest.raises(UsageError, match="other data or settings"):
        packed(split_folder, out, shard_images=4, split="train", encode="raw")
    packed(split_folder, out, shard_images=4, split="train")
    assert made == ["train-00001-of-00003.tar", "train-00002-of-00003.tar"]
    assert (out / first.name).stat().st_mtime_ns == stamp
    assert sorted(os.listdir(out)) == ["SHA256SUMS", "pack.json", *(f"train-0000{n}-of-00003.tar" for n in range(3))]
    packed(split_folder, tmp_path / "whole", shard_images=4, split="train")
    assert (out / "SHA256SUMS").read_text() == (tmp_path / "whole" / "SHA256SUMS").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pack_that_is_asked_to_stop_ends_with_75_and_goes_on(split_folder: Path, tmp_path: Path, workers: int):
    out = tmp_path / "out"
    assert killed_behind_the_first_shard(split_folder, out, signal.SIGTERM, workers) == 75
    report = packed(split_folder, out, shard_images=4, split="train", workers=workers)
    assert (report.images, sorted(os.listdir(out))[:2]) == (12, ["SHA256SUMS", "pack.json"])


def test_a_finished_shard_that_has_changed_is_made_again(split_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    killed_behind_the_first_shard(split_folder, out)
    first = out / ".partial" / "train-00000-of-00003.tar"
    content = bytearray(first.read_bytes())
    content[700] ^= 1
    first.write_bytes(content)
    events: list[Event] = []
    config = PackConfig(data=(str(split_folder),), output=str(out), shard_images=4, split="train", workers=0)
    pack(config, events.append)
    assert any(f"'{first.name}' is not what was written" in getattr(event, "message", "") for event in events)
    assert hashlib.sha256((out / first.name).read_bytes()).hexdigest() in (out / "SHA256SUMS").read_text()


def test_a_finished_pack_is_replaced_only_when_asked_and_leaves_nothing_of_the_old(split_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    packed(split_folder, out, shard_images=3)
    with pytest.raises(UsageError, match="holds a finished pack"):
        packed(split_folder, out)
    packed(split_folder, out, overwrite=True)
    assert [each.name for each in sorted(out.glob("*.tar"))] == [
        "train-00000-of-00001.tar",
        "validation-00000-of-00001.tar",
    ]


def test_a_full_disk_ends_with_4_and_the_command_goes_on_later(split_folder: Path, tmp_path: Path):
    """A limit of the size of files stands for the disk: the third shard of raw pixels is larger than it."""
    save_picture(split_folder / "train" / "c" / "9999.jpg", (90, 50, 60), 3, (400, 300))
    words = ["pack", str(split_folder), "-o", str(tmp_path / "out"), "--encode", "raw", "--shard-images", "6",
             "--split", "train", "--workers", "0"]  # fmt: skip

    ended = Child(lambda: main(words), file_size=200_000).ended(60)
    assert (ended.code, "cannot be written: File too large" in ended.err) == (4, True)
    assert "2 of 3 shards are finished; the same command goes on." in ended.err
    assert sorted(os.listdir(tmp_path / "out" / ".partial"))[-2:] == [
        "train-00000-of-00003.tar",
        "train-00001-of-00003.tar",
    ]
    assert main(words) == 0


def test_a_failing_shard_ends_the_processes_of_the_others(split_folder: Path, tmp_path: Path, monkeypatch):
    """The first fails when the second is begun, which goes on until it is told to end."""
    begun = tmp_path / "begun"

    def fails(packing, shard):
        deadline = time.monotonic() + 60
        if shard.first == 0:
            while not begun.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise StorageError(f"{shard.name} fails")
        begun.write_text(str(os.getpid()))
        while not is_stopped() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline
        begun.with_suffix(".ended").touch()

    monkeypatch.setattr(run_of_pack, "write_shard", fails)
    with pytest.raises(StorageError, match="train-00000-of-00006"):
        packed(split_folder, tmp_path / "out", shard_images=2, split="train", workers=2)
    assert begun.with_suffix(".ended").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def killed_while_it_finishes(data: Path, output: Path, steps: int, **settings: Any) -> int:
    """Packs in a process that is killed behind `steps` files removed from DIR or moved to it; returns its exit code."""

    def work() -> int:
        done, replace, unlink = 0, Path.replace, Path.unlink

        def step() -> None:
            nonlocal done
            if done == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

        def replaced(self: Path, target: Path) -> Path:
            if self.parent.name == ".partial" and Path(target).parent == output:
                step()
            return replace(self, target)

        def unlinked(self: Path, missing_ok: bool = False) -> None:
            if self.parent == output and self.name[0] != ".":
                step()
            unlink(self, missing_ok)

        Path.replace, Path.unlink = replaced, unlinked  # type: ignore[method-assign]
        packed(data, output, **settings)
        return 0

    return Child(work).ended(60).code


@pytest.mark.parametrize("steps", [0, 1, 5, 11, 14])
@pytest.mark.parametrize("is_the_same", [True, False])
def test_a_kill_while_a_pack_is_replaced_leaves_a_folder_to_pack_into(
    split_folder: Path, tmp_path: Path, steps: int, is_the_same: bool
):
    """4 shards in place of 6: killed before and while the old are removed, while the new move, and before pack.json."""
    out = tmp_path / "out"
    packed(split_folder, out, shard_images=3)
    assert killed_while_it_finishes(split_folder, out, steps, shard_images=5, overwrite=True) == -signal.SIGKILL
    settings: dict[str, Any] = {"shard_images": 5} if is_the_same else {"shard_images": 6, "overwrite": True}
    packed(split_folder, out, **settings)
    packed(split_folder, tmp_path / "whole", shard_images=settings["shard_images"])
    assert {each.name: each.read_bytes() for each in out.iterdir()} == {
        each.name: each.read_bytes() for each in (tmp_path / "whole").iterdir()
    }


def test_a_pack_is_compared_before_it_is_one(split_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run_of_pack, "compare", stops)
        with pytest.raises(KeyboardInterrupt):
            packed(split_folder, out, shard_images=4)
    assert os.listdir(out) == [".partial"]
    made: list[str] = []
    monkeypatch.setattr(run_of_pack, "write_shard", lambda packing, shard: made.append(shard.name))
    assert (packed(split_folder, out, shard_images=4).images, made) == (16, [])


def test_shards_in_another_order_are_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(4):
        save_picture(tmp_path / "data" / f"{number}.png", (90, 10 * number, 60), number)
    compare = run_of_pack.compare

    def swapped(packing: Any, *others: Any) -> None:
        first, second = sorted(packing.folder.glob("*.tar"))
        first.rename(packing.folder / "x")
        second.rename(first)
        (packing.folder / "x").rename(second)
        compare(packing, *others)

    monkeypatch.setattr(run_of_pack, "compare", swapped)
    with pytest.raises(StorageError, match="other images or labels"):
        packed(tmp_path / "data", tmp_path / "out", shard_images=2)
    assert os.listdir(tmp_path / "out") == [".partial"]


def test_too_many_bad_images_end_the_command_when_it_is_given_again(tmp_path: Path):
    for number in range(10):
        picture = save_picture(tmp_path / "data" / f"{number}.png", (90, 10 * number, 60), number)
        if number % 2:
            picture.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match="5 of 10 images cannot be read"):
            packed(tmp_path / "data", tmp_path / "out")
    assert packed(tmp_path / "data", tmp_path / "out", max_bad=0.5).bad == 5


def test_a_pack_without_an_image_is_none(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError):
            packed(tmp_path / "data", tmp_path / "out", max_bad=1)
    assert os.listdir(tmp_path / "out") == [".partial"]


def test_classes_that_no_layout_keeps_are_refused_before_anything_is_made(split_folder: Path, tmp_path: Path):
    files = sorted(split_folder.rglob("*.jpg"))[:2]
    (tmp_path / "list.tsv").write_text(f"{files[0]}\t007\n{files[1]}\ta/b\n")
    with pytest.raises(DataError, match="no one layout"):
        packed(tmp_path / "list.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_ends_the_pack_and_leaves_no_image_out(tmp_path: Path):
    """The kernel gives EIO for the first byte of a process's memory, as for a damaged sector."""
    for number in range(3):
        save_picture(tmp_path / "data" / f"{number}.png", (90, 10 * number, 60), number)
    (tmp_path / "data" / "3.png").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"3\.png' could not be read: .*Input/output error"):
        packed(tmp_path / "data", tmp_path / "out", max_bad=1)
    (tmp_path / "data" / "3.png").unlink()
    assert not list((tmp_path / "out" / ".partial").glob("*.tar"))
