"""The cells of the paper's tables: what runs, what is kept, and what a table says of it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import paper  # noqa: E402
from paper_tables import tokenizers  # noqa: E402
from paper_tables.cells import Cell, Failure, Runner  # noqa: E402

MASKS = Cell("table/masks", "mask-preview --stats 50 --num-masked 75", seed=0)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results", tmp_path / "work", tmp_path, "cpu", lambda line: None)


def write(runner: Runner, cell: Cell, **figures: object) -> None:
    file = runner.result_file(cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"command": f"beit {cell.command}", "cpu_seconds": 2.0, "figures": figures}))


def test_a_cell_runs_once(runner: Runner) -> None:
    runner.run_all([MASKS], jobs=1)
    kept = runner.result(MASKS)
    assert kept is not None
    assert kept["command"] == "beit mask-preview --stats 50 --num-masked 75"
    assert kept["figures"]["num_masked"]["mean"] == 75
    before = runner.result_file(MASKS).stat().st_mtime_ns
    runner.run_all([MASKS], jobs=1)
    assert runner.result_file(MASKS).stat().st_mtime_ns == before


def test_a_deleted_result_comes_out_the_same(runner: Runner) -> None:
    runner.run_all([MASKS], jobs=1)
    before = runner.result(MASKS)
    runner.result_file(MASKS).unlink()
    runner.run_all([MASKS], jobs=1)
    assert before is not None
    assert runner.result(MASKS)["figures"] == before["figures"]  # type: ignore[index]


def test_a_run_that_is_gone_is_made_again_for_those_that_need_it(runner: Runner) -> None:
    run = Cell("table/run", "train-tokenizer sample --out {out}", seed=0)
    reader = Cell("table/reader", "tokenize sample --tokenizer {run} --stats", seed=0, needs=("table/run",))
    write(runner, run)
    write(runner, reader)
    assert runner.missing([run, reader]) == []
    runner.result_file(reader).unlink()
    assert runner.missing([run, reader]) == [run, reader]
    checkpoints = runner.run_of("table/run") / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest").write_text("step-0000001\n")
    assert runner.missing([run, reader]) == [reader]
    shutil.rmtree(checkpoints)
    assert runner.missing([run, reader]) == [run, reader]


def test_a_failed_command_is_told_and_leaves_no_result(runner: Runner) -> None:
    wrong = Cell("table/wrong", "mask-preview --stats 50 --num-masked 9999", seed=0)
    (told,) = runner.run_all([wrong, MASKS], jobs=1)
    assert "exit code 2" in told
    assert runner.result(wrong) is None
    assert runner.result(MASKS) is not None


def test_other_figures_than_before_are_refused(runner: Runner) -> None:
    runner.run_all([MASKS], jobs=1)
    document = runner.result(MASKS)
    assert document is not None
    document["figures"]["num_masked"]["mean"] = 74.0
    runner.result_file(MASKS).write_text(json.dumps(document))
    with pytest.raises(Failure, match="another num_masked"):
        runner.run(MASKS, stop=threading.Event())


@pytest.mark.slow
def test_runs_are_handed_on(runner: Runner) -> None:
    make = Cell(
        "table/make",
        "train-tokenizer sample --recipe tiny --limit 8 --steps 1 --batch-size 2 --size 16 --workers 0 --out {out}",
        seed=0,
    )
    read = Cell("table/read", "tokenize sample --limit 2 --tokenizer {make} --stats --workers 0", 0, ("table/make",))
    runner.run_all([make, read], jobs=2)
    assert runner.result(read)["figures"]["images"] == 2  # type: ignore[index]


def test_every_cell_stands_behind_those_it_needs_and_seeds_are_whole() -> None:
    cells = tokenizers.cells(range(3))
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == 3 * 2 * (4 * 4 + 1 + 2)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    for place, cell in enumerate(cells):
        assert set(cell.needs) <= set(names[:place])


def test_the_table_of_tokenizers_gives_mean_and_deviation_of_whole_seeds(runner: Runner) -> None:
    for cell in tokenizers.cells(range(3)):
        if "/tiny-imagenet/vq/" not in cell.name or cell.name.endswith("seed-2/linear"):
            continue
        figures = {
            "tokenizer": {},
            "stats": {"codes_used": 1000 + 20 * cell.seed, "perplexity": 800, "psnr": 20.0, "mae": 0.07},
            "pretrain": {"masked_accuracy": 0.05, "baseline_accuracy": 0.02},
            "linear": {"top1": 0.10 + 0.02 * cell.seed},
        }
        write(runner, cell, **figures[cell.name.rpartition("/")[2]])
    (row,) = [line for line in tokenizers.rows(runner, range(3)) if line.startswith("| `vq`")]
    shown = [each.strip() for each in row.strip("|").split("|")]
    assert shown[0] == "`vq`"
    assert shown[1] == "1,010 (14)"  # of 1,000 and 1,020; the third seed is not whole
    assert shown[4:6] == ["0.0700 (0.0000)", "0.1400 (0.0000)"]
    assert shown[-3:] == ["2.5 (0.0)", "11.00 (1.41)", "2"]


def test_a_table_is_written_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- table 8 -->\nold\n<!-- end table 8 -->\nafter\n")
    paper.write_between_marks(document, "table 8", ["| a |", ""])
    assert document.read_text() == "before\n<!-- table 8 -->\n| a |\n\n<!-- end table 8 -->\nafter\n"
    with pytest.raises(ValueError, match="no marks"):
        paper.write_between_marks(document, "table 9", [])
