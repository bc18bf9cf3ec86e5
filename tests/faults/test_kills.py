"""SIGKILL: no handler runs, nothing is flushed. What was whole before is whole after, and the run goes on from it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beitcli.cli.app import main
from beitcli.runtime.storage.checkpoint import newest_checkpoint, save_checkpoint
from tests.faults.runs import STEPS, command, note_images, on_change, outcome, resumption, whole_checkpoints
from tests.helpers.forked import Child, forked

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)  # in a thread beside the main one: until the kernel is there


def save(run: Path, step: int, keep: int = 2) -> None:
    save_checkpoint(
        run / "checkpoints",
        step,
        model={"weight": torch.full((1000,), float(step))},
        config={"kind": "test"},
        trainer_tensors={"weight/step": torch.tensor(float(step))},
        trainer={"step": step},
        keep=keep,
    )


def test_a_kill_before_any_change_of_a_save_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    """The save dies at change n, for all n. Three checkpoints are there, one of a later step, which is set aside."""
    number, seen = 0, set()
    while True:
        number += 1
        run = tmp_path / f"run{number}"
        for step in (1, 2, 9):
            save(run, step, keep=9)

        def work(run: Path = run, number: int = number) -> int:
            changes = on_change(run / "checkpoints", number, die)
            save(run, 3)
            print(json.dumps(changes))
            return 0

        ended = forked(work)
        newest = newest_checkpoint(run)
        assert newest is not None
        assert newest.damaged == (), (number, newest.damaged)
        assert newest.trainer["step"] in (2, 3, 9)
        assert float(newest.model_tensors()["weight"][0]) == newest.trainer["step"]
        latest = (run / "checkpoints" / "latest").read_text().strip()
        assert (run / "checkpoints" / latest).is_dir() or (run / "checkpoints" / f"damaged-{latest}").is_dir()
        seen.add(newest.trainer["step"])
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        save(run, 4)  # the next save clears up
        assert {"latest", "step-0000004"} <= set(os.listdir(run / "checkpoints"))
        assert not [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]
    changes = json.loads(ended.out)
    assert number == len(changes) + 1
    assert number >= 15
    assert {change.split()[0] for change in changes} >= {"os.mkdir", "open", "fsync", "os.rename", "os.remove"}
    assert seen == {3, 9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> dict[str, object]:
    """The outcome of the run that nothing kills, and the number of its changes on disk."""
    root = tmp_path_factory.mktemp("whole")

    def work() -> int:
        note_images(root / "images")
        changes = on_change(root / "run", -1, die)
        code = main(command(labelled_folder, tokenizer_run, root / "run"))
        (root / "changes").write_text(str(len(changes)))
        return code

    assert forked(work).code == 0
    return outcome(root / "run", root / "images") | {"changes": int((root / "changes").read_text())}


def assert_goes_on(run: Path, images: Path, whole: dict, argv: list[str]) -> None:
    """The run that is resumed ends as the whole one, and leaves nothing of the killed one."""

    def work() -> int:
        note_images(images)
        return main(argv)

    ended = forked(work)
    assert ended.code == 0, ended.err
    assert outcome(run, images) | {"changes": whole["changes"]} == whole
    assert whole_checkpoints(run)[0] == f"step-{STEPS:07d}"
    assert sorted(path.name for path in run.rglob(".*")) == [".lock", ".pictures.jsonl"]


@pytest.mark.parametrize("part", range(5))
def test_a_run_killed_at_random_changes_goes_on_to_the_same_end(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, whole: dict, part: int
) -> None:
    """30 points in all, spread over the whole run: settings, metrics, each file and rename of each save."""
    draw = random.Random(part)
    first, last = (whole["changes"] * cut // 5 for cut in (part, part + 1))
    for number in sorted(draw.sample(range(first + 1, last + 1), 6)):
        run, images = tmp_path / f"run{number}", tmp_path / f"images{number}"
        argv = command(labelled_folder, tokenizer_run, run)

        def work(run: Path = run, images: Path = images, number: int = number, argv: list[str] = argv) -> int:
            note_images(images)
            on_change(run, number, die)
            return main(argv)

        ended = forked(work)
        assert ended.code == -signal.SIGKILL, (number, ended.err)
        assert_goes_on(
            run, images, whole, [*argv, "--resume"] if not (run / "config.toml").exists() else resumption(run)
        )


def test_a_run_killed_again_and_again_goes_on_to_the_same_end(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, whole: dict
) -> None:
    """At times that nobody chose, by another process, as the kernel does where memory ends."""
    draw = random.Random(0)
    run, images = tmp_path / "run", tmp_path / "images"
    argv = [*command(labelled_folder, tokenizer_run, run), "--resume"]

    def work() -> int:
        note_images(images)
        return main(argv)

    for _ in range(8):
        child = Child(work)
        time.sleep(draw.uniform(0.1, 0.9))
        child.signal(signal.SIGKILL)
        assert child.ended().code in (0, -signal.SIGKILL)
    assert_goes_on(run, images, whole, argv)


def test_what_a_killed_process_left_is_named_where_the_run_goes_on(
    beit: Callable, tmp_path: Path, labelled_folder: Path, tokenizer_run: Path
) -> None:
    run = tmp_path / "run"
    argv = command(labelled_folder, tokenizer_run, run)

    def at_rename(run: Path = run) -> int:
        # the second checkpoint's files are there, its folder has no name yet
        changes: list[str] = on_change(run, -1, die)
        rename = os.rename

        def killing(source: object, target: object, **options: object) -> None:
            if str(target).endswith("step-0000008"):
                die()
            rename(source, target, **options)  # type: ignore[arg-type]

        os.rename = killing  # type: ignore[assignment]
        assert changes == []
        return main(argv)

    assert forked(at_rename).code == -signal.SIGKILL
    left = [path.name for path in (run / "checkpoints").glob(".step-*")]
    assert len(left) == 1
    ended = beit("pretrain", "--out", run, "--resume")
    assert ended.code == 0
    assert f"unfinished: {left[0]}" in " ".join(ended.err.split())
    assert not list((run / "checkpoints").glob(".*"))
