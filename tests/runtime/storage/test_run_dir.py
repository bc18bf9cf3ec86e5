"""Run folders: what may be opened, what is refused, one process at a time, and metrics rewound to a checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.storage.run_dir import RunFolder


def visible(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name != ".lock"]


def test_a_new_or_empty_folder_is_made(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "run", resume=False)
    assert visible(run.path) == []
    assert RunFolder.create(run.path, resume=False).path == run.path
    assert run.checkpoints == run.path / "checkpoints"


def test_a_folder_that_holds_something_is_refused_and_untouched(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not empty") as caught:
        RunFolder.create(tmp_path, resume=False)
    assert "--resume" not in caught.value.hint
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.create(tmp_path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UsageError, match="not empty") as caught:
        RunFolder.create(tmp_path, resume=False)
    assert caught.value.message.endswith("it holds a run.")
    assert caught.value.hint.startswith(
        "Add --resume to go on with that run. To start over, give another --out, or delete the folder first; "
    )
    assert "--resume" in caught.value.hint


def test_a_run_that_this_process_holds_is_told_as_a_run_and_not_as_in_use(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    (run.path / "config.toml").write_text("")
    with pytest.raises(UsageError, match="it holds a run"):
        RunFolder.create(run.path, resume=False)


def test_a_run_is_opened_again_only_to_resume(tmp_path):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UsageError):
        RunFolder.create(tmp_path, resume=False)
    assert RunFolder.create(tmp_path, resume=True).path == tmp_path
    assert RunFolder.create(tmp_path / "new", resume=True).path.is_dir()


def test_a_file_in_the_way_is_a_usage_error_and_an_impossible_place_a_storage_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.create(file, resume=False)
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.create(file / "below", resume=False)
    with pytest.raises(StorageError, match="cannot be written"):
        RunFolder.create(tmp_path / ("n" * 300), resume=False)


def test_text_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    run.write_text("README.md", "first")
    run.write_text("README.md", "second")
    assert (run.path / "README.md").read_text() == "second"
    assert visible(run.path) == ["README.md"]


def test_what_cannot_be_written_is_a_storage_error(tmp_path):
    run = RunFolder.create(tmp_path / "run", resume=False)
    (run.path / "README.md").mkdir()
    with pytest.raises(StorageError, match=r"README\.md"):
        run.write_text("README.md", "text")
    with pytest.raises(StorageError, match=r"README\.md"):
        run.append_json("README.md", {})
    assert visible(run.path) == ["README.md"]


# One process at a time

HOLDER = """
    import os, signal, sys, time
    from pathlib import Path
    from beitcli.runtime.storage.run_dir import RunFolder

    run = RunFolder.create(Path(sys.argv[1]), resume=True)
    children = []
    for _ in range(int(sys.argv[2])):
        children.append(os.fork())
        if not children[-1]:
            time.sleep(100)
            os._exit(0)
    time.sleep(0.2)
    print(*children, flush=True)
    sys.stdin.readline()
    del run
    print("freed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path, int], tuple[subprocess.Popen, list[int]]]]:
    """Starts a process that holds a run folder, with forked children of its own."""
    started: list[subprocess.Popen] = []
    left: list[int] = []

    def start(folder: Path, children: int = 0) -> tuple[subprocess.Popen, list[int]]:
        program = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), str(children)]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        left.extend(pids)
        return process, pids

    yield start
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_in_use_is_refused_and_names_who_has_it(tmp_path, hold):
    process, _ = hold(tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(UsageError, match="in use by") as caught:
            RunFolder.create(tmp_path / "run", resume=resume)
        assert f"process {process.pid} on {socket.gethostname()}" in caught.value.message
        assert caught.value.exit_code == 2
    assert visible(tmp_path / "run") == []
    (tmp_path / "run" / "config.toml").write_text("")  # the run has begun
    with pytest.raises(UsageError, match=f"in use by process {process.pid} on "):
        RunFolder.create(tmp_path / "run", resume=False)
    (tmp_path / "run" / "config.toml").unlink()
    assert RunFolder.create(tmp_path / "run" / "tokenizer", resume=True).path.is_dir()  # a folder of its own
    process.stdin.write("\n"), process.stdin.flush()
    assert process.stdout.readline() == "freed\n"
    run = RunFolder.create(tmp_path / "run" / "tokenizer", resume=True)
    assert RunFolder.create(tmp_path / "other", resume=False).path != run.path


def test_a_killed_holder_frees_the_folder_at_once_though_its_forked_children_live(tmp_path, hold):
    process, children = hold(tmp_path, 2)
    with pytest.raises(UsageError, match=f"process {process.pid} "):
        RunFolder.create(tmp_path, resume=True)
    process.kill()
    process.wait()
    started = time.perf_counter()
    run = RunFolder.create(tmp_path, resume=True)
    assert time.perf_counter() - started < 1
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    for pid in children:
        os.kill(pid, 0)  # still there
    assert visible(run.path) == []


def test_a_process_opens_its_own_folder_again_and_the_last_one_frees_it(tmp_path, hold):
    first, second = RunFolder.create(tmp_path, resume=True), RunFolder.create(tmp_path, resume=True)
    assert first.path == second.path
    del first
    refused = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path), "0"],
        input="",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "UsageError" in refused.stderr
    assert f"process {os.getpid()} on" in refused.stderr
    del second
    process, _ = hold(tmp_path)
    with pytest.raises(UsageError, match=f"process {process.pid} "):
        RunFolder.create(tmp_path, resume=True)


def test_a_forked_child_neither_frees_the_lock_nor_has_it(tmp_path):
    run = RunFolder.create(tmp_path, resume=True)
    child = os.fork()
    if not child:
        try:
            RunFolder.create(tmp_path, resume=True)
        except UsageError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert RunFolder.create(tmp_path, resume=True).path == run.path


def test_a_folder_that_was_removed_and_made_again_is_locked_again(tmp_path, hold):
    first = RunFolder.create(tmp_path / "run", resume=False)
    shutil.rmtree(first.path)
    second = RunFolder.create(tmp_path / "run", resume=False)
    assert (second.path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(HOLDER), str(second.path), "0"],
            input="",
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=["ENOSYS", "ENOLCK", "EOPNOTSUPP"]
)
def test_a_mount_without_locks_is_used_unguarded(tmp_path, monkeypatch, number):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    first = RunFolder.create(tmp_path / "run", resume=False)
    assert RunFolder.create(tmp_path / "run", resume=True).path == first.path
    assert (first.path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert visible(first.path) == []


def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(tmp_path):
    target = tmp_path / "precious.txt"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(target)
    with pytest.raises(StorageError, match="is a link"):
        RunFolder.create(tmp_path / "run", resume=True)
    assert target.read_text() == "mine"


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "previews").mkdir()
    unfinished = [".metrics.jsonl.41", ".README.md.41", "previews/.step-0000008.png.41"]
    kept = [".notes", "previews/step-0000004.png", "previews/.mine.png"]
    for name in (*unfinished, *kept):
        (tmp_path / name).write_text("")
    run = RunFolder.create(tmp_path, resume=True)
    assert sorted(run.leftovers) == sorted(Path(name).name for name in unfinished)
    assert not any((tmp_path / name).exists() for name in unfinished)
    assert all((tmp_path / name).exists() for name in kept)


def test_a_link_in_place_of_the_previews_is_not_followed(tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    run.mkdir()
    (elsewhere / ".step-0000008.png.41").write_text("")
    (run / "config.toml").write_text("")
    (run / "previews").symlink_to(elsewhere)
    assert RunFolder.create(run, resume=True).leftovers == ()
    assert (elsewhere / ".step-0000008.png.41").exists()
