"""What the paper's tables conclude: intervals, claims, rates, order, curves, and attention beside masks."""

from __future__ import annotations

import json
import math
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
from paper_tables import ablation, attention, classification, convergence, segmentation  # noqa: E402
from paper_tables.attention_iou import best_iou, middle_of, objects_of, patch_classes  # noqa: E402
from paper_tables.cells import Cell, Failure, Runner  # noqa: E402
from paper_tables.comparison import Claim, paired, sentence  # noqa: E402
from paper_tables.prepare import lay_out  # noqa: E402

MADE = ("1", "3", "4", "convergence", "figure 2")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results", tmp_path / "work", tmp_path, "cpu", lambda line: None)


def write(runner: Runner, name: str, **figures: Any) -> None:
    file = runner.results / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"command": f"beit {name}", "cpu_seconds": 10.0, "figures": figures}))


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
    line = sentence(Claim("A beats B", "a", "b", {"few": 0.5}), "top-1", "few", better, worse)
    assert line.startswith(f"- **{verdict}**: A beats B. top-1: ")
    assert line.endswith("n = 3; the paper's difference: +0.50.")


def test_one_seed_decides_nothing() -> None:
    line = sentence(Claim("A beats B", "a", "b"), "top-1", "few", {0: 9.0}, {0: 1.0})
    assert line == "- **undecided**: A beats B. top-1: +8.00 (n = 1)."
    with pytest.raises(ValueError, match="No seed"):
        paired({0: 1.0}, {1: 1.0})


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


def test_a_table_counts_whole_seeds_and_is_left_out_without_one(runner: Runner) -> None:
    table = segmentation.TABLE
    assert table.rows(runner, range(3), "small") == []
    for seed in range(3):
        for row, miou in (("scratch", 0.2), ("supervised", 0.24), ("beit", 0.25), ("intermediate", 0.2)):
            if (seed, row) != (2, "beit"):
                write(runner, f"small/{row}/seed-{seed}/segment", miou=miou + 0.001 * seed * (row == "beit"))
    write(runner, "small/beit/seed-0/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01)
    text = "\n".join(table.rows(runner, range(3), "small"))
    assert "n = 2" in text.splitlines()[0]
    assert "| `beit` | BEiT | 25.05 (0.07) | +5.05 (4.41 to 5.69) | 45.6 |" in text
    assert "**held**: Pretraining is better than scratch. mIoU: +5.05" in text
    assert "**did not hold**: Finetuning on labels in between helps" in text
    assert "the paper's difference: +2.10" in text
    assert "5.00% of the hidden tokens" in text
    assert "beit small/beit/seed-0/segment" in text


@pytest.mark.parametrize("table", [classification.TABLE, segmentation.TABLE, ablation.TABLE, attention.TABLE])
def test_claims_and_references_name_rows(table: Any) -> None:
    rows = {row.variant for row in table.starts}
    for claim in table.claims:
        assert {claim.better, claim.worse} <= rows
    for column in table.columns:
        assert (column.reference or table.reference) in rows
        assert column.has(column.reference or table.reference)
        assert set(column.rows) <= rows


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
        write(runner, f"small/scratch-longer/seed-{seed}/few", curve=[[20, 0.03], [40, 0.05]])
        write(runner, f"small/beit/seed-{seed}/few", curve=[[10, 0.04 + 0.001 * seed], [20, 0.06]])
        write(runner, f"small/beit/seed-{seed}/pretrain", masked_accuracy=0.05, baseline_accuracy=0.01)
    text = "\n".join(convergence.rows(runner, range(3), "small"))
    assert "| 10 | 2.00 (0.00) | 4.05 (0.07) |" in text
    assert "`beit` has the accuracy that `scratch` ends with after 10 (0) of its 20 steps, 5 (0) processor" in text
    assert "with pretraining 15 (0)" in text
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
    document.write_text("".join(f"<!-- {title} -->\n<!-- end {title} -->\n" for title in ("table 3", "figure 2")))
    words = ["paper.py", "--budget", "smoke", "--seeds", "1", "--jobs", "2", "--data", str(data)]
    words += ["--segmentation", str(masks), "--docs", str(document)]
    words += ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    for name, word in (("3", "intermediate/seed-0/segment"), ("figure 2", "pixels/seed-0/iou")):
        monkeypatch.setattr(sys, "argv", [*words, "--only", name, "--match", word])
        assert paper.main() == 0
    folder = tmp_path / "results" / "smoke"
    segmented = json.loads((folder / "intermediate" / "seed-0" / "segment.json").read_text())
    assert "--lr 7e-4" in segmented["command"] or "--lr 2e-3" in segmented["command"]
    assert 0 <= segmented["figures"]["miou"] <= 1
    assert json.loads((folder / "pixels" / "seed-0" / "iou.json").read_text())["figures"]["objects"] > 0
    assert (folder / "beit" / "seed-0" / "many.json").exists()
