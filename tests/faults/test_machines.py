"""Several machines, as launchers beside one another and in network namespaces of their own; and sixteen processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.weight_files.reader import read_tensors
from tests.faults.launches import Launched
from tests.faults.runs import command, outcome, whole_checkpoints
from tests.helpers.processes import free_port, in_processes

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def namespaces_allowed() -> bool:
    name = f"beit-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    except OSError:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(run)
    assert newest is not None
    return read_tensors(newest.path / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert [each.code for each in in_processes(2, command(labelled_folder, tokenizer_run, run))] == [0, 0]
    return run


def assert_same_run(run: Path, other: Path) -> None:
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert outcome(run)["lines"] == outcome(other)["lines"]


def test_two_launchers_on_one_machine_make_one_run(labelled_folder, tokenizer_run, tmp_path, undisturbed):
    words = command(labelled_folder, tokenizer_run, tmp_path / "run")
    meet = ("--gpus", 2, "--nodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    ended = [launched.ended() for launched in [Launched([*words, *meet]) for _ in range(2)]]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert sorted(out for _, out, _ in ended) == ["", f"{tmp_path / 'run'}\n"]
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.fixture
def namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """What goes before a command to run it on one of two machines, 10.211.7.1 and 10.211.7.2."""
    names = [f"beit-{os.getpid()}-{number}" for number in (1, 2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "way", "netns", names[0], "type", "veth", "peer", "name", "way", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.211.7.{number}/24", "dev", "way")
            ip("-n", name, "link", "set", "way", "up")
        yield tuple(["ip", "netns", "exec", name] for name in names)  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


needs_namespaces = pytest.mark.skipif(not namespaces_allowed(), reason="needs the right to make network namespaces")


@needs_namespaces
def test_two_machines_make_one_run(labelled_folder, tokenizer_run, tmp_path, undisturbed, namespaces):
    words = command(labelled_folder, tokenizer_run, tmp_path / "run")
    meet = ("--gpus", 2, "--nodes", 2, "--rdzv-endpoint", "10.211.7.1:29400")
    started = [Launched([*words, *meet], prefix=prefix) for prefix in reversed(namespaces)]
    ended = [launched.ended() for launched in started]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_same_run(tmp_path / "run", undisturbed)


@needs_namespaces
def test_a_machine_that_is_not_there_is_told_with_its_place(labelled_folder, tokenizer_run, tmp_path, namespaces):
    words = command(labelled_folder, tokenizer_run, tmp_path / "run")
    meet = ("--gpus", 2, "--nodes", 2, "--rdzv-endpoint", "10.211.7.9:29400")
    code, _, err = Launched([*words, *meet], prefix=namespaces[0]).ended(60)
    assert code == 6, err
    assert "10.211.7.9:29400" in err
    assert not (tmp_path / "run").exists()


def test_sixteen_processes_make_one_run(labelled_folder, tokenizer_run, tmp_path):
    words = command(labelled_folder, tokenizer_run, tmp_path / "run", "--gpus", 16, "--batch-size", 16, "--steps", 2)
    first, *others = in_processes(16, words)
    assert (first.code, first.out) == (0, f"{tmp_path / 'run'}\n"), first.err
    assert {(each.code, each.out) for each in others} == {(0, "")}, others
    assert whole_checkpoints(tmp_path / "run") == ["step-0000002"]


def test_paths_on_stdin_cannot_be_shared(beit, tokenizer_run):
    ended = beit("tokenize", "-", "--tokenizer", tokenizer_run, "--device", "cpu", "--gpus", 2, stdin=b"a.png\n")
    assert ended.code == 2
    assert "Paths on stdin cannot be shared by several processes" in ended.err


def test_several_machines_need_the_name_of_the_run(beit, labelled_folder, tokenizer_run):
    meet = ("--gpus", 2, "--nodes", 2, "--rdzv-endpoint", "127.0.0.1:29400")
    ended = beit(
        "pretrain", labelled_folder, "--recipe", "tiny", "--tokenizer", tokenizer_run, "--device", "cpu", *meet
    )
    assert ended.code == 2
    assert "Add --out RUN, on a shared disk." in ended.err
