"""Standard streams that are closed, full, or whose reader has gone: no run is lost, and no traceback is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.cli.console import CommandConsole
from beitcli.cli.streams import with_way_out
from beitcli.engine.events import Note
from tests.faults.runs import command, whole_checkpoints
from tests.helpers.forked import forked

pytestmark = pytest.mark.faults


def into(number: int, path: str) -> None:
    """Makes a file the stream `number` of this process, in Python too."""
    descriptor = os.open(path, os.O_WRONLY)
    os.dup2(descriptor, number)
    os.close(descriptor)


def without_reader(number: int) -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, number)
    os.close(write)


@pytest.mark.parametrize("harm", [without_reader, lambda number: into(number, "/dev/full")], ids=["gone", "full"])
def test_a_run_ends_as_ever_when_nobody_reads_its_messages(
    labelled_folder: Path, tokenizer_run: Path, tmp_path: Path, harm: Callable
) -> None:
    argv = [word for word in command(labelled_folder, tokenizer_run, tmp_path / "run") if word != "--quiet"]

    def work() -> int:
        harm(2)
        return main(argv)

    ended = forked(work)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'run'}\n")
    assert whole_checkpoints(tmp_path / "run")[0] == "step-0000012"
    assert (tmp_path / "run" / "README.md").exists()


def test_a_finished_run_is_named_when_stdout_is_full(pretrained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")

    def work() -> int:
        into(1, "/dev/full")
        return main(["pretrain", "--out", str(run), "--resume"])

    ended = forked(work)
    assert ended.code == 4
    assert "cannot be written to stdout: No space left on device." in ended.err
    assert f"The run itself is complete: '{run}'." in ended.err


def test_results_into_a_full_stdout_are_4(picture: Callable, pretrained_run: Path) -> None:
    image = str(picture("a.png"))
    for argv in (
        ["mask-preview", image],
        ["mask-preview", image, "-o", "-"],
        ["inspect", str(pretrained_run)],
        ["--version"],
        ["--help"],
        ["mask-preview", "--help"],
    ):

        def work(argv: list[str] = argv) -> int:
            into(1, "/dev/full")
            return main(argv)

        ended = forked(work)
        assert (ended.code, "Traceback" in ended.err) == (4, False), (argv, ended.err)
        assert "Results cannot be written to stdout: No space left on device." in ended.err, argv


def test_a_broken_pipe_that_is_not_stdout_is_no_quiet_end(labelled_folder: Path, tmp_path: Path) -> None:
    """Only a reader of stdout that has gone ends a job with 0."""

    def work() -> int:
        from beitcli.engine import mask_preview

        def broken(*args: object, **kwargs: object) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        mask_preview.open_inputs = broken  # type: ignore[assignment]
        return main(["mask-preview", str(labelled_folder)])

    assert forked(work).code == 1


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_dev_null_and_no_file_takes_their_numbers(
    closed: str, picture: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    for words in (["--version"], ["mask-preview", str(picture("a.png")), "-o", str(out)]):
        line = f'exec "$@" {closed}'
        argv = ["sh", "-c", line, "sh", sys.executable, "-m", "beitcli", *words]
        done = subprocess.run(argv, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_stderr_of_a_console_never_fails_and_gets_no_controls_or_emoji() -> None:
    def work() -> int:
        console = CommandConsole()
        console.on_event(Note("run:100:x\x1b]0;title\x07 [bold]"))
        console.table({"a\x1bb": "c\x9bd:smile:"}, "t\x1b[2J:100:")
        console.print_error(RuntimeError("one\nerror: forged"))
        return 0

    ended = forked(work)
    assert ended.err.splitlines()[0] == "run:100:x\\x1b]0;title\\x07 [bold]"
    assert "t\\x1b[2J:100:" in ended.err
    assert "c\\x9bd:smile:" in ended.err
    assert "one\\nerror: forged" in ended.err
    assert "\x1b" not in ended.err


def test_storage_problems_that_nobody_named_are_4_with_their_file() -> None:
    for number in (28, 27, 122, 13, 30):
        named = with_way_out(OSError(number, os.strerror(number), "/disk/x"))
        assert f"'/disk/x' cannot be used: {os.strerror(number)}." in str(named)
        assert named.exit_code == 4  # type: ignore[attr-defined]
    bug = OSError(9, "Bad file descriptor")
    assert with_way_out(bug) is bug
