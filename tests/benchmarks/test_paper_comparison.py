"""What the paper's tables conclude: intervals, claims, rates, order, curves, and attention beside masks."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.paper_files import HARDWARE, write_result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import paper  # noqa: E402
from paper_tables import ablation, attention, classification, convergence, segmentation, summary  # noqa: E402
from paper_tables.attention_iou import best_iou, middle_of, objects_of, patch_classes  # noqa: E402
from paper_tables.beside import search_words  # noqa: E402
from paper_tables.budgets import BUDGETS  # noqa: E402
from paper_tables.cells import Cell, Failure, Runner  # noqa: E402
from paper_tables.comparison import Claim, Verdict, judged, paired, standard_error  # noqa: E402

MADE = ("1", "3", "4", "convergence", "figure 2")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results", tmp_path / "work", tmp_path, "cpu", lambda line: None)


def test_paired_interval_is_students() -> None:
    found = paired({0: 11.0, 1: 22.0, 2: 33.0, 3: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found.n == 3
    assert found.mean == pytest.approx(2)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)  # t of 2 degrees, deviation 1
    assert found.low == pytest.approx(2 * found.mean - found.high)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [((3.0, 3.1, 3.2), "held"), ((-3.0, -3.1, -3.2), "did not hold"), ((-1.0, 1.0, 3.0), "undecided")],
)
def test_the_interval_decides_a_claim(differences: tuple[float, ...], verdict: str) -> None:
    better, worse = dict(enumerate(differences)), {0: 0.0, 1: 0.0, 2: 0.0}
    line = judged(Claim("A beats B", "a", "b", {"few": 0.5}), "top-1", "few", better, worse).sentence()
    assert line.startswith(f"- **{verdict}**: A beats B. top-1: ")
    assert line.endswith("n = 3; the paper's difference: +0.50.")


def test_one_seed_decides_nothing() -> None:
    claim = Claim("A beats B", "a", "b")
    line = judged(claim, "top-1", "few", {0: 9.0}, {0: 1.0}).sentence()
    assert line == "- **undecided**: A beats B. top-1: +8.00 (n = 1)."
    with pytest.raises(ValueError, match="No seed"):
        paired({0: 1.0}, {1: 1.0})
    assert judged(claim, "top-1", "few", {0: 1.0}, {1: 1.0}).word == "not run"


def test_equal_differences_decide_nothing() -> None:
    found = paired({0: 5.1, 1: 6.1, 2: 7.1}, {0: 5.0, 1: 6.0, 2: 7.0})
    assert found.verdict == "undecided"
    assert found.shown() == "+0.10 (all 3 seeds alike: no interval)"


def test_the_summary_puts_what_did_not_hold_first_and_counts_chance() -> None:
    def verdict(*differences: float) -> Verdict:
        better = dict(enumerate(differences))
        return judged(Claim(f"A by {differences}", "a", "b"), "top-1", "few", better, dict.fromkeys(better, 0.0))

    verdicts = {"table 1": [verdict(3, 3.1), verdict(1), verdict()], "table 4": [verdict(-3, -3.1), verdict(2, 2)]}
    document = {"hardware": HARDWARE, "cpu_seconds": 60.0, "code": {"commit": "0123456789abcdef", "dirty": True}}
    text = "\n".join(summary.rows(verdicts, [document, document], "small"))
    assert "**4 claims, each in one figure: 1 did not hold, 1 held, 2 undecided**; 1 more have not run." in text
    assert "2 have an interval of 95%: if no difference were real, 0.1 of them" in text
    listed = [line.split(":")[0] for line in text.splitlines() if line.startswith("- ")]
    assert listed == ["- **did not hold**", "- **held**", "- **undecided**", "- **undecided**"]
    assert "120 processor seconds for 2 commands, all seeds; on A processor (2 cores, 1 thread a command)" in text
    assert "code 0123456789ab (changed)" in text
    assert summary.rows({"table 1": [verdict()]}, [], "small") == []


def test_standard_error_is_binomial() -> None:
    assert standard_error(50, 100) == pytest.approx(5)
    assert standard_error(10, 2000) == pytest.approx(0.6708, abs=1e-4)


@pytest.mark.parametrize("name", ["small", "gpu"])
def test_budgets_see_every_label_and_say_what_they_see(name: str) -> None:
    budget = BUDGETS[name]
    assert budget.few_steps * budget.batch_size >= budget.few
    assert budget.many_steps * budget.batch_size >= budget.many
    assert budget.curve_points >= 2
    assert f"{budget.few_steps:,} steps ({budget.few_steps * budget.batch_size:,} views, " in budget.words
    assert f"see {budget.segment_seen} of 367 training images" in budget.words


def test_the_better_rate_is_chosen_and_a_missing_search_is_told(runner: Runner) -> None:
    cell = Cell("few", "finetune --lr {rate}", 0, rates=(("1e-3", "slow"), ("3e-3", "fast")))
    with pytest.raises(Failure, match="slow has not run"):
        runner.chosen_rate(cell)
    write_result(runner.results, "slow", top1=0.2)
    write_result(runner.results, "fast", top1=0.3)
    assert runner.chosen_rate(cell) == "3e-3"
    write_result(runner.results, "slow", miou=0.3)
    assert runner.chosen_rate(cell) == "1e-3"  # the first of equals
    assert cell.waits_for == {"slow", "fast"}


def test_cells_run_once_behind_their_needs_and_whole_seeds_first() -> None:
    cells = paper.cells_of(MADE, range(3), "small")
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    for place, cell in enumerate(cells):
        assert cell.waits_for <= set(names[:place]), cell.name
    assert sum(name.endswith("beit/seed-1/pretrain") for name in names) == 1
    assert {cell.seed for cell in cells if "search" in cell.name} == {0}
    longer = next(cell for cell in cells if cell.name == "small/scratch-longer/seed-1/few")
    searches = [cell.command for cell in cells if cell.name in {name for _, name in longer.rates}]
    assert len(searches) == 2
    for command in [*searches, longer.command]:
        assert f"--steps {BUDGETS['small'].scratch_longer_steps} " in command
    alone = paper.needed(cells, "beitv2/seed-1/few")
    assert {cell.name for cell in alone} >= {"small/scratch/seed-1/many", "small/beitv2/seed-0/search-few-2e-3"}


def test_rows_of_a_table_differ_in_what_they_say_alone() -> None:
    cells = {cell.name: cell.command for cell in paper.cells_of(["4"], range(1), "small")}
    plain = cells["small/beit/seed-0/pretrain"].split()
    for variant, added in (("random", {"--masking", "random"}), ("all", {"--predict", "all"})):
        assert set(cells[f"small/{variant}/seed-0/pretrain"].split()) - set(plain) == added
    finetunings = {
        command for name, command in cells.items() if name.endswith("/few") and "measure-share 1" not in command
    }
    assert len(finetunings) == 1


def test_a_missing_cell_costs_its_own_row_a_seed_only(runner: Runner) -> None:
    table = segmentation.TABLE
    assert table.rows(runner, range(3), "small") == []
    for seed in range(3):
        for row, miou in (("scratch", 0.2), ("supervised", 0.24), ("beit", 0.25), ("intermediate", 0.2)):
            if (seed, row) != (2, "beit"):
                write_result(
                    runner.results, f"small/{row}/seed-{seed}/segment", miou=miou + 0.001 * seed * (row == "beit")
                )
    seen = {"images_seen": 5120, "epoch": 0.128}
    write_result(runner.results, "small/beit/seed-0/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01, **seen)
    text = "\n".join(table.rows(runner, range(3), "small"))
    assert "n = 3" in text.splitlines()[0]
    assert "| `scratch` | random weights | 20.00 (0.00) |  | none |" in text
    assert "| `beit` | BEiT | 25.05 (0.07), n = 2 | +5.05 (4.41 to 5.69), n = 2 | 45.6 |" in text
    assert "**held**: Pretraining is better than scratch. mIoU: +5.05" in text
    assert "**did not hold**: Finetuning on labels in between helps" in text
    assert "the paper's difference: +2.10" in text
    assert "5.00% of the hidden tokens" in text
    assert "sees 5,120 of 40,000 training images (0.13 epochs)" in text
    assert "120 processor seconds for 12 commands" in text
    assert "`supervised` 1,000 steps with labels" in text
    assert "beit small/beit/seed-0/segment" in text


@pytest.mark.parametrize("table", [classification.TABLE, segmentation.TABLE, ablation.TABLE, attention.TABLE])
def test_claims_and_references_name_rows(table: Any) -> None:
    rows = {row.variant for row in table.starts}
    for claim in table.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.worse_column in ("", *(column.title for column in table.columns))
    for budget in BUDGETS.values():
        assert all("{" not in text.format(b=budget) for text in (table.about, *table.notes))
    for column in table.columns:
        assert (column.reference or table.reference) in rows
        assert column.has(column.reference or table.reference)
        assert set(column.rows) <= rows


def test_no_claim_is_made_twice_and_beit_v2s_with_many_labels_only(runner: Runner) -> None:
    made = [
        (claim.better, claim.worse, claim.worse_column, column.stage)
        for table in (classification.TABLE, segmentation.TABLE, ablation.TABLE, attention.TABLE)
        for claim in table.claims
        for column in table.columns
        if column.is_claimed and (not claim.stages or column.stage in claim.stages)
    ]
    assert len(set(made)) == len(made)
    assert [stage for better, _, _, stage in made if better == "beitv2"] == ["many"]


def test_nearness_alone_is_what_attention_has_to_beat(runner: Runner) -> None:
    for seed in range(3):
        write_result(runner.results, f"small/beit/seed-{seed}/iou", iou=0.30 + 0.01 * seed, iou_distance=0.40)
    text = "\n".join(attention.TABLE.rows(runner, range(3), "small"))
    assert "**did not hold**: BEiT's attention separates objects better than nearness alone. IoU: -9.00" in text
    assert "a grid of 6 x 6 patches" in text


def test_rates_within_the_standard_error_are_counted(runner: Runner) -> None:
    for variant, second in (("scratch", 0.103), ("beit", 0.2)):
        write_result(runner.results, f"small/{variant}/seed-0/search-few-7e-4", top1=0.1)
        write_result(runner.results, f"small/{variant}/seed-0/search-few-2e-3", top1=second)
    (line,) = search_words(runner, "small", ["scratch", "beit", "pixels"])
    assert line.startswith(
        "Learning rates: 1 of 2 rows chose between two rates that measured within one standard error"
    )


def test_claims_of_table_4_carry_the_papers_differences() -> None:
    shown = {row.variant: [float(each) for each in row.paper.split("/")] for row in ablation.TABLE.starts}
    for claim in ablation.TABLE.claims:
        for stage, place in (("few", 0), ("segment", 1)):
            difference = shown[claim.better][place] - shown[claim.worse][place]
            assert claim.paper[stage] == pytest.approx(difference, abs=1e-9), claim.text


def test_steps_to_an_accuracy_are_interpolated() -> None:
    curve = [[10, 0.1], [20, 0.3], [30, 0.2]]
    assert convergence.steps_to(curve, 0.05) == 5
    assert convergence.steps_to(curve, 0.2) == pytest.approx(15)
    assert convergence.steps_to(curve, 0.31) is None


def test_convergence_is_told_and_drawn(runner: Runner, tmp_path: Path) -> None:
    for seed in range(2):
        write_result(runner.results, f"small/scratch/seed-{seed}/few", curve=[[10, 0.02], [20, 0.04]])
        write_result(
            runner.results, f"small/scratch-longer/seed-{seed}/few", curve=[[20, 0.03], [40, 0.05 - 0.02 * seed]]
        )
        write_result(runner.results, f"small/tokenizer/seed-{seed}/tokenizer")
        write_result(runner.results, f"small/beit/seed-{seed}/few", curve=[[10, 0.04 + 0.001 * seed], [20, 0.06]])
        write_result(runner.results, f"small/beit/seed-{seed}/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01)
    text = "\n".join(convergence.rows(runner, range(3), "small"))
    assert "| 10 | 2.00 (0.00) | 4.05 (0.07) |" in text
    assert "ends with in 2 of 2 seeds, after 10 (0) of its own 20 steps, 5 (0) processor seconds" in text
    assert "with tokenizer and pretraining 25 (0)" in text
    assert "in 1 of 2 seeds, after 30 of its own 40 steps, 8 processor seconds; never in seed 1, which" in text
    assert "Mean top-1 over these steps but the last: +2.05" in text
    convergence.draw(runner, range(3), "small", tmp_path / "pictures")
    with Image.open(tmp_path / "pictures" / "convergence-small.png") as picture:
        assert picture.width > 100


def test_objects_touch_along_sides_and_small_large_and_void_ones_are_left_out() -> None:
    labels = np.array([[0, 0, 1, 1], [2, 0, 1, 3], [2, 4, 11, 11], [2, 4, 11, 0]])
    found = objects_of(labels)
    assert [int(labels[middle_of(each)]) for each in found] == [0, 1, 2]
    assert middle_of(found[2]) == (2, 0)
    assert objects_of(np.zeros((4, 4), int)) == []


def test_iou_is_that_of_the_best_threshold() -> None:
    region = np.array([[True, True], [False, False]])
    assert best_iou(np.array([[0.9, 0.8], [0.1, 0.0]]), region) == 1
    assert best_iou(np.array([[0.9, 0.1], [0.8, 0.0]]), region) == pytest.approx(2 / 3)
    mask = np.zeros((6, 6), np.uint8)
    mask[:3, 3:] = 5
    assert patch_classes(mask, (2, 2)).tolist() == [[0, 5], [0, 0]]


def test_marks_without_a_section_hold_nothing(runner: Runner, tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- table 3 -->\nold\n<!-- end table 3 -->\nafter\n")
    paper.write_between_marks(document, "table 3", paper.lines_of("3", runner, range(3), ["small", "gpu"]))
    assert document.read_text() == "before\n<!-- table 3 -->\n\n<!-- end table 3 -->\nafter\n"
