"""Checkpoints: whole or absent, verified, newest first, and intact when the disk is full or a process is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest
import safetensors.torch
import torch

from beitcli.errors import StorageError
from beitcli.runtime.storage.checkpoint import (
    damage,
    load_tensors,
    newest_checkpoint,
    remove_leftovers,
    save_checkpoint,
    step_folders,
    verified_checkpoint,
)
from beitcli.runtime.storage.hashing import sha256_of
from tests.helpers.forked import Child, forked

FILES = ["SHA256SUMS", "config.json", "model.safetensors", "trainer.json", "trainer.safetensors"]


def save(run: Path, step: int, keep: int = 5, numbers: int = 100) -> Path:
    return save_checkpoint(
        run / "checkpoints",
        step,
        model={"weight": torch.full((numbers,), float(step)), "tied": torch.arange(6.0).reshape(2, 3).T},
        config={"kind": "test"},
        trainer_tensors={"weight/step": torch.tensor(float(step))},
        trainer={"step": step},
        keep=keep,
    )


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = save(tmp_path, 7)
    assert path == tmp_path / "checkpoints" / "step-0000007"
    assert sorted(entry.name for entry in path.iterdir()) == FILES
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == path
    assert checkpoint.damaged == ()
    tensors = checkpoint.model_tensors()
    assert torch.equal(tensors["weight"], torch.full((100,), 7.0))
    assert torch.equal(tensors["tied"], torch.arange(6.0).reshape(2, 3).T)
    assert float(checkpoint.trainer_tensors()["weight/step"]) == 7
    assert checkpoint.trainer == {"step": 7}
    assert checkpoint.config == {"kind": "test"}


def test_sums_are_those_of_sha256sum(tmp_path):
    path = save(tmp_path, 1)
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=path, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert [line.split("  ")[1] for line in (path / "SHA256SUMS").read_text().splitlines()] == FILES[1:]


def test_latest_names_the_newest_and_old_ones_go(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
        assert (tmp_path / "checkpoints" / "latest").read_text() == f"step-{step:07d}\n"
    assert [path.name for path in step_folders(tmp_path / "checkpoints")] == ["step-0000010", "step-0000003"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", "step-0000003", "step-0000010"]


def test_a_damaged_later_checkpoint_is_set_aside_and_never_outlives_the_one_just_saved(tmp_path):
    folder = tmp_path / "checkpoints"
    save(tmp_path, 100), flip(save(tmp_path, 200) / "model.safetensors")
    saved = save(tmp_path, 150, keep=1)  # a run that went on from step 100
    assert sorted(os.listdir(folder)) == ["damaged-step-0000200", "latest", "step-0000150"]
    assert (folder / "latest").read_text() == "step-0000150\n"
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.damaged) == (saved, ())
    assert load_tensors(saved / "model.safetensors")["weight"][0] == 150
    assert sorted(entry.name for entry in (folder / "damaged-step-0000200").iterdir()) == FILES

    flip(save(tmp_path, 200, keep=2) / "model.safetensors")
    save(tmp_path, 175, keep=2)
    assert sorted(os.listdir(folder)) == [
        *("damaged-step-0000200", "damaged-step-0000200-2", "latest", "step-0000150", "step-0000175"),
    ]


def test_the_same_step_saved_again_replaces_the_first_and_a_kill_in_between_loses_none(tmp_path):
    folder = tmp_path / "checkpoints"
    save(tmp_path, 3, keep=1), save(tmp_path, 3, keep=1, numbers=7)
    assert sorted(os.listdir(folder)) == ["latest", "step-0000003"]
    assert len(load_tensors(folder / "step-0000003" / "model.safetensors")["weight"]) == 7

    def killed_before_rename(number: int) -> int:
        calls, rename = count(1), Path.rename

        def deadly(path: Path, target: Path) -> Path:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = deadly  # type: ignore[method-assign]
        save(tmp_path, 3, keep=1, numbers=9)
        return 0

    for number in (1, 2):
        assert forked(lambda number=number: killed_before_rename(number)).code == -signal.SIGKILL
        remove_leftovers(folder)
        assert sorted(os.listdir(folder)) == ["latest", "step-0000003"]
        assert damage(folder / "step-0000003") == ""


def test_the_same_step_saved_again_in_vain_leaves_the_first_in_its_place(tmp_path, monkeypatch):
    """What was written vanishes before it gets its name: the system refuses to rename it."""
    folder, rename = tmp_path / "checkpoints", Path.rename
    save(tmp_path, 3, keep=1)

    def vanishes(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            shutil.rmtree(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", vanishes)
    with pytest.raises(StorageError, match="No such file") as ended:
        save(tmp_path, 3, keep=1, numbers=7)
    assert ended.value.hint.endswith("earlier checkpoints are intact.")
    assert sorted(os.listdir(folder)) == ["latest", "step-0000003"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert len(found.model_tensors()["weight"]) == 100


def test_only_tensors_that_share_memory_or_have_gaps_are_copied_to_be_saved(tmp_path, monkeypatch):
    written: dict[str, torch.Tensor] = {}

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.update(tensors)
        safetensors.torch.save_file(tensors, path)

    monkeypatch.setattr("beitcli.runtime.storage.checkpoint.save_file", save_file)
    whole, tall = torch.arange(6.0), torch.arange(6.0).reshape(2, 3)
    model = {"whole": whole, "tied": whole, "turned": tall.T, "part": tall[:1], "none": torch.empty(0)}
    path = save_checkpoint(
        tmp_path, 1, model=model, config={"kind": "test"}, trainer_tensors={}, trainer={"step": 1}, keep=1
    )
    stored = load_tensors(path / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.items())
    assert written["whole"].data_ptr() == whole.data_ptr()
    assert whole.data_ptr() != written["tied"].data_ptr()
    assert written["part"].data_ptr() != tall.data_ptr()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_of_the_steps_up_to_the_saved_one_are_kept(tmp_path, keep):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=keep)
        kept = [int(path.name[5:]) for path in step_folders(tmp_path / "checkpoints")]
        assert kept == list(range(step, max(0, step - keep), -1))


def test_checkpoints_are_ordered_by_number_and_other_folders_are_no_checkpoints(tmp_path):
    for step in (9_999_999, 10_000_000, 5):
        (tmp_path / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    for other in ("step-", "step-best", "step-0000007-copy", "damaged-step-0000009"):
        (tmp_path / "checkpoints" / other).mkdir()
    (tmp_path / "checkpoints" / "step-0000008").write_text("a file")
    names = [path.name for path in step_folders(tmp_path / "checkpoints")]
    assert names == ["step-10000000", "step-9999999", "step-0000005"]
    save(tmp_path, 10_000_001, keep=2)
    assert [path.name for path in step_folders(tmp_path / "checkpoints")] == ["step-10000001", "step-10000000"]
    assert (tmp_path / "checkpoints" / "step-best").is_dir()


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 4, numbers=10)
    path = save(tmp_path, 4, numbers=20)
    assert load_tensors(path / "model.safetensors")["weight"].numel() == 20
    assert damage(path) == ""


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_checkpoint(tmp_path) is None


def truncate(path: Path) -> None:
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_any_damaged_file_is_found_and_the_one_before_is_taken(tmp_path, name, harm):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    harm(newer / name)
    if name == "SHA256SUMS" and harm is truncate:  # only the last newline is gone: nothing is lost
        assert damage(newer) == ""
        return
    assert damage(newer)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == older
    assert len(checkpoint.damaged) == 1
    assert "step-0000002" in checkpoint.damaged[0]
    with pytest.raises(StorageError, match="step-0000002"):
        verified_checkpoint(newer)


def test_when_every_checkpoint_is_damaged_it_is_said_and_not_begun_anew(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "model.safetensors")
    with pytest.raises(StorageError) as caught:
        newest_checkpoint(tmp_path)
    assert "step-0000001" in caught.value.message
    assert "step-0000002" in caught.value.message


def test_sums_that_list_nothing_or_lead_outside_are_damage(tmp_path):
    path = save(tmp_path, 1)
    whole = (path / "SHA256SUMS").read_text()
    (path / "SHA256SUMS").write_text("")
    assert damage(path)
    outside = tmp_path / "outside"
    outside.write_text("x")
    (path / "SHA256SUMS").write_text(f"{whole}{sha256_of(outside)}  ../../outside\n")
    assert damage(path)
    (path / "SHA256SUMS").write_bytes(b"\xff\xfe not text")
    assert damage(path)


def test_unfinished_folders_never_count_and_are_cleaned_by_the_next_save(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    unfinished = folder / ".step-0000002.partial-4242"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    (folder / ".latest-4242").write_text("step-0000002\n")
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path.name == "step-0000001"
    save(tmp_path, 3)
    assert sorted(os.listdir(folder)) == ["latest", "step-0000001", "step-0000003"]


def test_a_file_that_is_no_safetensors_is_a_storage_error(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(StorageError, match="cannot be read"):
        load_tensors(tmp_path / "model.safetensors")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path, 1)


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path):
    save(tmp_path, 1, keep=1, numbers=1000)

    def work() -> None:
        try:
            save(tmp_path, 2, keep=1, numbers=1_000_000)
        except StorageError as error:
            print(error.message, "|", error.hint)

    ended = forked(work, file_size=100_000)
    assert ended.code == 0, ended.err
    assert "(4 MB needed)" in ended.out
    assert "earlier checkpoints are intact" in ended.out
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", "step-0000001"]
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.damaged == ()
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-0000001\n"


def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """Anywhere in a save; `test_kills` stops one before each of its changes."""

    def work() -> None:
        for step in count(1):
            save(tmp_path, step, keep=1, numbers=300_000)

    child = Child(work)
    deadline = time.monotonic() + 60
    seen = 0
    while seen < 3:
        seen = max((int(path.name[5:]) for path in step_folders(tmp_path / "checkpoints")), default=0)
        assert time.monotonic() < deadline
    while not list((tmp_path / "checkpoints").glob(".step-*.partial-*")):
        assert time.monotonic() < deadline  # killed while a folder is half written
    child.signal(signal.SIGKILL)
    assert child.ended().code == -signal.SIGKILL
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.damaged == ()
    assert checkpoint.trainer["step"] >= seen
    assert json.loads((checkpoint.path / "trainer.json").read_text())["step"] == int(checkpoint.path.name[5:])
