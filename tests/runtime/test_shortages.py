"""What a machine lacks is named, with a way out; everything else stays what it is."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beitcli.cli.app import main
from beitcli.errors import MemoryShortage, StorageError, UsageError
from beitcli.runtime.shortages import shortage
from tests.helpers.forked import forked


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (MemoryError(), MemoryShortage, "Memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), MemoryShortage, "Memory ran out"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), MemoryShortage, "Memory ran out"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.png"), UsageError, "Too many files are open"),
        (RuntimeError(os.strerror(errno.EAGAIN)), UsageError, "No further process or thread"),
        (RuntimeError("can't start new thread"), UsageError, "No further process or thread"),
        (OSError(errno.ENAMETOOLONG, "x", "d" * 300), StorageError, "The file system takes no name that long: 'ddd"),
        (RuntimeError("Could not determine home directory."), UsageError, "no home folder"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "b"), StorageError, "No space is left: 'b'"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "d"), StorageError, "no name that long: 'd'"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "c"), StorageError, "Permission is denied: 'c'"),
    ],
)
def test_a_shortage_is_named_with_a_way_out(error: Exception, kind: type, named: str) -> None:
    found = shortage(error)
    assert type(found) is kind
    assert named in found.message
    assert found.hint
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 12.62 GiB "
        "is free. Including non-PyTorch memory, this process has 66.47 GiB memory in use.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 18.00 GB)",
    ],
)
def test_too_little_memory_of_a_gpu_is_told_apart_from_the_machine_s(said: str) -> None:
    found = shortage(torch.OutOfMemoryError(said))
    assert isinstance(found, MemoryShortage)
    assert found.exit_code == 2
    assert found.message == "The GPU has not enough memory."
    assert "--batch-size" in found.hint
    assert "--workers" not in found.hint


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("memory"), RuntimeError("shapes differ"), OSError(5, "I/O")]
)
def test_other_errors_are_none(error: Exception) -> None:
    assert shortage(error) is None


def test_a_pipe_or_a_lock_that_would_block_is_no_lack_of_processes() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError) as refused:
        os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    assert shortage(refused.value) is None
    assert shortage(RuntimeError("[pair.cc:534] read 127.0.0.1: Resource temporarily unavailable by peer")) is None


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, labelled_folder: Path) -> None:
    picture = next(labelled_folder.rglob("*.png"))

    def work() -> int:
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        return main(["mask-preview", str(picture), "-o", "x.png"])

    ended = forked(work)
    assert ended.code == 2, ended.err
    assert "The working folder has been removed." in ended.err


def test_a_process_that_cannot_be_started_is_named() -> None:
    def work() -> int:
        if os.geteuid() == 0:  # the limit does not hold for root
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            subprocess.run(["true"], check=False)
        except OSError as error:
            found = shortage(error)
            assert found is not None
            print(found.message, file=sys.stderr)
        return 0

    ended = forked(work)
    assert (ended.code, ended.err.startswith("No further process or thread")) == (0, True), ended.err


def test_torch_s_own_error_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert isinstance(shortage(refused.value), UsageError)


def test_a_command_without_files_left_says_so(tmp_path: Path, labelled_folder: Path) -> None:
    words = ["pretrain", str(labelled_folder), "--recipe", "tiny", "--target", "pixels", "--image-size", "32"]
    words += ["--patch-size", "8", "--num-masked", "6", "--batch-size", "5", "--steps", "2", "--device", "cpu"]

    def without_files(limit: int) -> Callable[[], int]:
        def work() -> int:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return main([*words, "--workers", "2", "--out", str(tmp_path / str(limit))])

        return work

    for limit in (14, 32, 40):  # none for Python itself, for the run, for the workers
        ended = forked(without_files(limit))
        assert ended.code in (2, 3, 4), (limit, ended.err)
        assert "This is a bug" not in ended.err
        assert "open" in ended.err
    assert forked(without_files(256)).code == 0


def test_no_home_is_named(tmp_path: Path, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BEIT_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no entry in the list of users either
    ended = forked(lambda: main(["mask-preview", str(labelled_folder), "-o", str(tmp_path / "x.png")]))
    assert ended.code == 2, ended.err
    assert "no home folder" in ended.err
