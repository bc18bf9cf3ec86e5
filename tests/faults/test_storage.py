"""Places that take nothing: a disk that is full, a folder that may not be written, one that vanishes under a job."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beitcli.cli.app import main
from beitcli.engine import tokenize
from beitcli.engine.trainer import loop as training
from tests.faults.runs import command, on_call, outcome, resumption, whole_checkpoints
from tests.helpers.forked import forked, read_only

pytestmark = [pytest.mark.faults, pytest.mark.slow]

USES: dict[str, Callable[..., list[object]]] = {
    "tokens.jsonl": lambda r, image, out: ["tokenize", image, "--tokenizer", r("tokenizer_run"), "-o", out / "t.jsonl"],
    "tokens.npz": lambda r, image, out: ["tokenize", image, "--tokenizer", r("tokenizer_run"), "-o", out / "t.npz"],
    "tokens.parquet": lambda r, image, out: [
        *("tokenize", image, "--tokenizer", r("tokenizer_run"), "-o", out / "t.parquet"),
    ],
    "pictures": lambda r, image, out: ["tokenize", image, "--tokenizer", r("tokenizer_run"), "--reconstruct", out],
    "masks": lambda r, image, out: ["mask-preview", image, "-o", out / "mask.png"],
    "attention": lambda r, image, out: ["attn-map", image, "--model", r("pretrained_run"), "-o", out / "map.png"],
    "export": lambda r, image, out: ["export", r("finetuned_run"), "--to", "timm", "-o", out / "exported"],
}
GOES_ON: dict[
    str, tuple[set[str], list[str]]
] = {  # what may be left of such a job, and the words with which it goes on
    "tokens.jsonl": ({"t.jsonl"}, ["--resume"]),
    "tokens.npz": ({"t.npz.partial", "t.npz.partial.jsonl"}, ["--resume"]),
    "tokens.parquet": ({"t.parquet.partial", "t.parquet.partial.jsonl"}, ["--resume"]),
    "pictures": ({".beit-unfinished"}, []),
}
each_use = pytest.mark.parametrize("use", list(USES))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in below(folder)}


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@each_use
def test_a_full_disk_is_4_and_the_job_goes_on_when_there_is_room(
    request: pytest.FixtureRequest, picture: Callable, beit: Callable, tmp_path: Path, use: str
) -> None:
    """A file may grow to 20 bytes, and the next byte is refused: RLIMIT_FSIZE, in a child."""
    left, more = GOES_ON.get(use, (set(), []))
    out = tmp_path / "out"
    out.mkdir()
    argv = [str(word) for word in USES[use](request.getfixturevalue, picture("a.png"), out)]
    ended = forked(lambda: main(argv), file_size=20) if use == "tokens.jsonl" else None
    ended = ended or forked(lambda: main(argv), file_size=40)
    assert ended.code == 4, (ended.out, ended.err)
    assert "cannot be written" in ended.err
    assert "Traceback" not in ended.err
    assert set(below(out)) <= left
    again = beit(*argv, *more)
    assert again.code == 0, again.err
    assert not set(below(out)) & (left - {"t.jsonl"})


def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on_when_there_is_room(
    beit: Callable, pretrained_run: Path, tmp_path: Path
) -> None:
    newest, before = "step-0000004", "step-0000002"
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / newest)
    (run / "checkpoints" / "latest").write_text(f"{before}\n")
    kept = contents(run / "checkpoints")
    ended = forked(lambda: main(["pretrain", "--out", str(run), "--resume"]), file_size=1_000_000)
    assert (ended.code, ended.out) == (4, ""), ended.err
    assert re.search(r"error: Checkpoint '.*step-0000004' cannot be written \([\d.]+ [kM]B needed\)", ended.err)
    assert "--resume" in ended.err
    assert contents(run / "checkpoints") == kept
    (document,) = beit("pretrain", "--out", run, "--resume", "--json").lines
    assert document["step"] == 4
    first, second = (each / "checkpoints" / newest / "model.safetensors" for each in (run, pretrained_run))
    assert first.read_bytes() == second.read_bytes()


def test_a_full_disk_leaves_the_earlier_token_file(tokenizer_run: Path, labelled_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tokens.npz"
    rows = np.zeros((1, 16), np.int32)
    np.savez(target, paths=np.array(["x.png"]), tokens=rows, grid=np.array([4, 4], np.int32))
    before = target.read_bytes()
    argv = ["tokenize", str(labelled_folder), "--tokenizer", str(tokenizer_run), "-o", str(target), "--resume"]
    ended = forked(lambda: main(argv), file_size=300)
    assert ended.code == 4, ended.err
    assert "cannot be written" in ended.err
    assert target.read_bytes() == before


@each_use
def test_a_folder_that_may_not_be_written_is_4(
    request: pytest.FixtureRequest, picture: Callable, tmp_path: Path, use: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    argv = [str(word) for word in USES[use](request.getfixturevalue, picture("a.png"), out)]
    with read_only(out):
        ended = forked(lambda: main(argv), powerless=True)
    assert ended.code == 4, (ended.out, ended.err)
    assert "Traceback" not in ended.err
    assert below(out) == []


def test_a_run_folder_that_may_not_be_written_is_4(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path) -> None:
    with read_only(tmp_path):
        argv = command(labelled_folder, tokenizer_run, tmp_path / "run")
        ended = forked(lambda: main(argv), powerless=True)
    assert ended.code == 4, ended.err
    assert below(tmp_path) == []


@pytest.mark.parametrize("step", [2, 6, 12])
def test_a_run_folder_that_vanishes_is_4(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, step: int) -> None:
    run = tmp_path / "run"

    def work() -> int:
        on_call(training, "optimizer_step", step, lambda: run.rename(tmp_path / "elsewhere"))  # while a save is written
        return main(command(labelled_folder, tokenizer_run, run))

    ended = forked(work)
    assert ended.code == 4, ended.err
    assert "cannot be written" in ended.err


@pytest.mark.parametrize("kept", [200, 900])
def test_metrics_that_cannot_grow_are_4_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, kept: int
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    ended = forked(lambda: main(command(labelled_folder, tokenizer_run, run)), file_size=20_000 + kept)
    assert ended.code == 4, ended.err
    assert whole_checkpoints(run) == []
    assert forked(lambda: main(resumption(run))).code == 0
    assert forked(lambda: main(command(labelled_folder, tokenizer_run, other))).code == 0
    assert outcome(run) == outcome(other)


def test_a_folder_that_vanishes_under_tokenize_is_4(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path) -> None:
    for suffix in ("jsonl", "npz"):
        out = tmp_path / "out"
        target = out / f"tokens.{suffix}"
        argv = [
            "tokenize",
            labelled_folder,
            "--tokenizer",
            tokenizer_run,
            "--batch-size",
            4,
            "-o",
            target,
            "--workers",
            0,
        ]

        def work(argv: list[object] = argv, out: Path = out) -> int:
            on_call(tokenize, "_tokenized", 3, lambda: shutil.rmtree(out))
            return main([str(word) for word in argv])

        ended = forked(work)
        assert ended.code == 4, (suffix, ended.err)
