"""What the paper's tables conclude: intervals, claims, rates, order, curves, and attention beside masks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import paper  # noqa: E402
from paper_tables import ablation, attention, classification, convergence, segmentation, summary  # noqa: E402
from paper_tables.attention_iou import best_iou, middle_of, objects_of, patch_classes  # noqa: E402
from paper_tables.beside import search_words  # noqa: E402
from paper_tables.budgets import BUDGETS  # noqa: E402
from paper_tables.cells import Cell, Failure, Runner  # noqa: E402
from paper_tables.code_version import code_version, named  # noqa: E402
from paper_tables.comparison import Claim, Verdict, judged, paired, standard_error  # noqa: E402
from paper_tables.prepare import lay_out  # noqa: E402

HARDWARE = {"processor": "A processor", "cores": 2, "threads": 1, "gpu": None, "versions": {"torch": "2.0"}}
MADE = ("1", "3", "4", "convergence", "figure 2")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results", tmp_path / "work", tmp_path, "cpu", lambda line: None)


def write(runner: Runner, name: str, **figures: Any) -> None:
    file = runner.results / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"command": f"beit {name}", "cpu_seconds": 10.0, "hardware": HARDWARE, "figures": figures})
    )


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
    write(runner, "slow", top1=0.2)
    write(runner, "fast", top1=0.3)
    assert runner.chosen_rate(cell) == "3e-3"
    write(runner, "slow", miou=0.3)
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
                write(runner, f"small/{row}/seed-{seed}/segment", miou=miou + 0.001 * seed * (row == "beit"))
    seen = {"images_seen": 5120, "epoch": 0.128}
    write(runner, "small/beit/seed-0/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01, **seen)
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
    assert "`supervised` 160 steps with labels" in text
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
        write(runner, f"small/beit/seed-{seed}/iou", iou=0.30 + 0.01 * seed, iou_distance=0.40)
    text = "\n".join(attention.TABLE.rows(runner, range(3), "small"))
    assert "**did not hold**: BEiT's attention separates objects better than nearness alone. IoU: -9.00" in text
    assert "a grid of 6 x 6 patches" in text


def test_rates_within_the_standard_error_are_counted(runner: Runner) -> None:
    for variant, second in (("scratch", 0.103), ("beit", 0.2)):
        write(runner, f"small/{variant}/seed-0/search-few-7e-4", top1=0.1)
        write(runner, f"small/{variant}/seed-0/search-few-2e-3", top1=second)
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
        write(runner, f"small/scratch/seed-{seed}/few", curve=[[10, 0.02], [20, 0.04]])
        write(runner, f"small/scratch-longer/seed-{seed}/few", curve=[[20, 0.03], [40, 0.05 - 0.02 * seed]])
        write(runner, f"small/tokenizer/seed-{seed}/tokenizer")
        write(runner, f"small/beit/seed-{seed}/few", curve=[[10, 0.04 + 0.001 * seed], [20, 0.06]])
        write(runner, f"small/beit/seed-{seed}/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01)
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


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, str]:
    """Returns programs that take a cell's options: one prints a document, one none, one fails."""
    bodies = {"good": "print('{\"top1\": 0.5}')", "mute": "print('no document')", "bad": "raise SystemExit(3)"}
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    return {name: str(tmp_path / f"{name}.py") for name in bodies}


def test_a_failure_takes_along_only_what_needs_it(runner: Runner, scripts: dict[str, str]) -> None:
    cells = [
        Cell("bad", "x", 0, script=scripts["bad"]),
        Cell("mute", "x", 0, script=scripts["mute"]),
        Cell("unknown", "{nowhere}", 0, script=scripts["good"]),
        Cell("child", "x", 0, needs=("bad",), script=scripts["good"]),
        Cell("grandchild", "x --lr {rate}", 0, rates=(("1", "child"),), script=scripts["good"]),
        Cell("good", "x", 0, script=scripts["good"]),
    ]
    told = runner.run_all(cells, jobs=1)
    assert len(told) == 4
    assert "exit code 3" in told[0]
    assert "no JSON document" in told[1]
    assert "KeyError" in told[2]
    assert told[3].endswith("failed: child, grandchild")
    kept = runner.result(cells[-1])
    assert kept is not None
    assert kept["figures"] == {"top1": 0.5}
    assert kept["code"].keys() == {"commit", "dirty"}
    assert [cell.name for cell in cells if runner.result(cell)] == ["good"]


def test_another_command_or_a_damaged_file_runs_again_with_what_needs_it(
    runner: Runner, scripts: dict[str, str]
) -> None:
    write(runner, "search-1", top1=0.1)
    write(runner, "search-2", top1=0.2)
    searches = tuple((rate, f"search-{rate}") for rate in "12")
    cells = [
        Cell("search-1", "search-1", 0),
        Cell("search-2", "search-2", 0),
        Cell("chosen", "chosen --lr {rate}", 0, rates=searches, script=scripts["good"]),
        Cell("child", "child", 0, needs=("chosen",), script=scripts["good"]),
    ]
    assert runner.run_all(cells, jobs=1) == []
    assert runner.stale(cells) == {}
    write(runner, "search-1", top1=0.3)  # the other rate is better now
    assert list(runner.stale(cells)) == ["chosen", "child"]
    assert [cell.name for cell in runner.missing(cells)] == ["chosen", "child"]
    assert runner.run_all(cells, jobs=1) == []
    assert "--lr 1" in runner.result(cells[2])["command"]  # type: ignore[index]
    assert sorted(file.name for file in (runner.work / "former").iterdir()) == ["child.json", "chosen.json"]
    runner.result_file(cells[3]).write_text("{")
    assert runner.result(cells[3]) is None
    assert runner.stale(cells) == {"child": "its result file is damaged"}


def test_a_result_names_the_commit_and_whether_the_code_differs(tmp_path: Path) -> None:
    assert code_version(tmp_path) == {"commit": None, "dirty": None}
    (tmp_path / "beitcli").mkdir()
    (tmp_path / "beitcli" / "a.py").write_text("a = 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "a", "--no-verify"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = code_version(tmp_path)
    assert clean["dirty"] is False
    (tmp_path / "results.json").write_text("{}")
    assert code_version(tmp_path) == clean  # no code
    (tmp_path / "beitcli" / "a.py").write_text("a = 2\n")
    assert named(code_version(tmp_path)) == f"{str(clean['commit'])[:12]} (changed)"


def shards(folder: Path, images: int) -> Path:
    """Writes three tar shards for training and one to measure on, four classes of one colour each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, numbers in (("train", range(3)), ("val", range(1))):
        for number in numbers:
            with tarfile.open(folder / f"{split}-{number}.tar", "w") as tar:
                for index in range(images):
                    pixels = random.integers(0, 80, (64, 64, 3)).astype(np.uint8)
                    pixels[..., index % 3] += 40 * (index % 4)
                    file = BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    entry = tarfile.TarInfo(f"{split}/class-{index % 4}/{number}-{index}.png")
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
    return folder


def streets(folder: Path) -> Path:
    """Writes pictures of two classes and a void border, with their masks."""
    for split, count in (("train", 8), ("val", 3)):
        for number in range(count):
            mask = np.full((48, 64), 11, np.uint8)
            mask[4:, :40], mask[4:, 40:] = 1, 2
            for kind, picture in (("images", np.repeat(mask[..., None] * 20, 3, axis=2)), ("masks", mask)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / split / kind / f"{number}.png")
    return folder


def test_data_is_laid_out_once_and_searches_see_no_validation_image(tmp_path: Path) -> None:
    data, masks = shards(tmp_path / "data", 24), streets(tmp_path / "streets")
    folders = lay_out(tmp_path / "work", data, masks, "smoke")
    assert sorted(file.name for file in folders["train"].iterdir()) == ["train-0.tar", "train-1.tar"]
    assert json.loads((folders["search"] / "pack.json").read_text())["splits"]["train"]["images"] == 20
    for split, count in (("train", 7), ("val", 1)):
        images = sorted((folders["segmentation_search"] / split / "images").iterdir())
        assert len(images) == count
        assert {image.resolve().parents[1] for image in images} == {masks / "train"}
    made = (folders["val"] / "pack.json").stat().st_mtime_ns
    assert lay_out(tmp_path / "work", data, masks, "smoke") == folders
    assert (folders["val"] / "pack.json").stat().st_mtime_ns == made


@pytest.mark.slow
def test_commands_run_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, masks = shards(tmp_path / "data", 60), streets(tmp_path / "streets")
    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text(
        "".join(f"<!-- {title} -->\n<!-- end {title} -->\n" for title in ("table 3", "figure 2", "summary"))
    )
    words = ["paper.py", "--budget", "smoke", "--seeds", "1", "--jobs", "2", "--data", str(data)]
    words += ["--segmentation", str(masks), "--docs", str(document)]
    words += ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    for name, word in (
        ("3", "intermediate/seed-0/segment"),
        ("figure 2", "pixels/seed-0/iou"),
        ("figure 2", "untrained/seed-0/iou"),
    ):
        monkeypatch.setattr(sys, "argv", [*words, "--only", name, "--match", word])
        assert paper.main() == 0
    folder = tmp_path / "results" / "smoke"
    segmented = json.loads((folder / "intermediate" / "seed-0" / "segment.json").read_text())
    assert "--lr 7e-4" in segmented["command"] or "--lr 2e-3" in segmented["command"]
    assert 0 <= segmented["figures"]["miou"] <= 1
    found = {name: json.loads((folder / name / "seed-0" / "iou.json").read_text()) for name in ("pixels", "untrained")}
    assert found["pixels"]["figures"]["objects"] > 0
    assert found["pixels"]["figures"]["iou_distance"] == found["untrained"]["figures"]["iou_distance"]
    assert found["pixels"]["figures"]["iou"] != found["untrained"]["figures"]["iou"]
    assert "<!-- summary -->\n### Summary: budget `smoke`" in document.read_text()
    assert (folder / "beit" / "seed-0" / "many.json").exists()
