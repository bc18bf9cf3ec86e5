"""Tables of all commands: one look, one form of each number, names as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import beitcli
from beitcli.cli.app import main
from beitcli.cli.console import CommandConsole
from beitcli.cli.tables import comparison_table, facts_table, in_words, rows_table
from beitcli.engine.events import Note, Saved, Warned, openings
from beitcli.runtime.metric_text import epochs_text
from tests.cli.test_contract import at_terminal, screen
from tests.conftest import Ended


def shown(table: object, **how: object) -> list[str]:
    console = Console(**{"color_system": None, "width": 80} | how)  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_rows_have_four_decimals_thousands_at_the_right_and_empty_cells() -> None:
    rows = [
        {"run_name": "a[b]", "step": None, "top1": 0.25, "resumed": True},
        {"run_name": "c\x1b[2Jd", "step": 12000, "top1": None, "resumed": False},
    ]
    assert shown(rows_table(rows)) == [
        "run name     step    top1  resumed",
        "a[b]               0.2500  yes",
        "c\\x1b[2Jd  12,000          no",
    ]
    assert shown(rows_table(rows, "Two runs"))[0] == "Two runs"
    assert shown(rows_table([])) == [""]


def test_a_table_that_is_too_wide_leaves_room_for_the_column_that_matters() -> None:
    facts = {"made by": "pretrain small", "state": "stopped", "step": 1200, "ago": "35 min"}
    rows = [{"run": "pretrain-20261128-215330", **facts, "figure": "masked accuracy 9.2% = 10.3 x guessing"}]
    wide = shown(rows_table(rows, whole="run", room="figure", width=120), width=120)
    assert wide[1].endswith("pretrain small  stopped  1,200  35 min  masked accuracy 9.2% = 10.3 x guessing")
    assert shown(rows_table(rows, whole="run", room="figure")) == [
        "run                       made by   state     step  ago  figure",
        "pretrain-20261128-215330  pretrain  stopped  1,200  35   masked accuracy 9.2% =",
        "                          small                     min  10.3 x guessing",
    ]
    assert shown(rows_table(rows, whole="run", room="figure", width=70), width=70) == [
        "run                made by   state     step  ago  figure",
        "pretrain-20261128  pretrain  stopped  1,200  35   masked accuracy 9.2%",
        "-215330            small                     min  = 10.3 x guessing",
    ]


def test_facts_have_four_digits_and_leave_out_what_is_not_known() -> None:
    facts = {"masked_accuracy": 0.123456, "images": 12345, "kind": None, "of_class": {"red": 0.5, "blue": None}}
    assert shown(facts_table(facts)) == [
        "masked accuracy  0.1235",
        "images           12,345",
        "of class         red 0.5, blue -",
    ]


def test_names_of_columns_and_of_facts_have_one_colour() -> None:
    colour = {"color_system": "standard", "force_terminal": True}
    for table in (
        rows_table([{"run": "a"}], "Runs"),
        comparison_table([{"run": "a", "top1": 1.0}], "run"),
        facts_table({"run": "a"}, "Runs"),
    ):
        assert any(re.search("\x1b\\[36m ?run", line) for line in shown(table, **colour)), shown(table, **colour)


def test_tables_are_built_in_one_place() -> None:
    root = Path(beitcli.__file__).parent
    found = {path.relative_to(root) for path in root.rglob("*.py") if re.search(r"\bTable\(", path.read_text())}
    assert found == {Path("cli/tables.py")}


def test_inspect_shows_the_names_of_tensors_as_they_are(pretrained_run: Path, beit: Callable) -> None:
    code, said = at_terminal(lambda: main(["inspect", str(pretrained_run), "--tensors"]))
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert re.search(r"^tensor +shape", plain, re.MULTILINE)
    assert re.search(r"^mask_token +1 x 1 x \d+", plain, re.MULTILINE)
    assert "mask_token" in beit("inspect", pretrained_run, "--tensors").lines[0]["tensors"]


SCORES = {"images": 100, "top1": 0.475, "top5": 1.0, "top1_interval": (0.3294, 0.625), "baseline_accuracy": 0.5}


def test_top1_is_told_once_with_its_interval_and_the_most_frequent_class() -> None:
    lines = shown(facts_table(in_words({**SCORES, "classes": 3})))
    assert lines == [
        "images             100",
        "top1               0.4750 (95%: 0.3294 to 0.6250)",
        "baseline accuracy  0.5000 (always guessing the most frequent class)",
        "classes            3",
    ]
    chosen = in_words({**SCORES, "top1_interval": None})  # of the best of several layers
    assert (chosen["top1"], "top1_interval" in chosen) == (0.475, False)


def test_what_every_evaluation_has_in_common_is_not_shown() -> None:
    assert in_words({"protocol": "head", "bad": 0, "images": 5}) == {"images": 5}
    assert shown(facts_table(in_words({"protocol": "knn", "bad": 2}))) == [
        "protocol           knn",
        "unreadable images  2",
    ]


def test_the_speed_of_a_run_is_its_average_and_the_last() -> None:
    told = in_words({"images_seen": 25600, "seconds": 266.4, "images_per_second": 143.717})
    assert told["images_per_second"] == "96.1 on average, 143.7 at the end"


def test_accuracy_of_a_pretraining_has_its_error_beside_it_and_images_are_told_once() -> None:
    measured = {"masked_accuracy": 0.04506, "masked_accuracy_std_error": 0.00407, "measured_images": 512}
    told = in_words({**measured, "measured_on": "512 held-out images"})
    assert told == {"masked_accuracy": "0.0451 (standard error 0.004)", "measured_on": "512 held-out images"}
    told = in_words({"masked_accuracy": 0.04506, "baseline_accuracy": 0.02})
    assert told["baseline_accuracy"] == "0.0200 (always guessing the most frequent token)"
    never = in_words({"masked_accuracy": 0.004, "baseline_accuracy": 0.0})["baseline_accuracy"]
    assert never == "0.0000 (always guessing the most frequent token of training, which no measured patch has)"
    assert "measured_images" in in_words(measured)


def test_top5_is_shown_of_more_than_five_classes_alone() -> None:
    layers = [{"layer": 1, "top1": 0.5, "top5": 0.9}]
    for classes, is_shown in ((5, False), (6, True), (None, True)):
        told = in_words({**SCORES, "classes": classes, "layers": layers})
        assert ("top5" in told, "top5" in told["layers"][0]) == (is_shown, is_shown)
        models = [{"model": "a", "classes": classes, **SCORES}, {"model": "b", "error": "failed"}]
        assert ("top5" in shown(comparison_table(models, "model"))[0]) == is_shown


def test_models_are_told_apart_at_80_columns_and_the_interval_stands_where_it_fits() -> None:
    names = [f"runs/pretrained-on-photos-with-a-long-name-{number}" for number in (1, 2)]
    for rows, header in (
        ([{"model": name, "classes": 9, **SCORES} for name in names], ["model", "top1", "top5", "images"]),
        ([{"model": name[-6:], **SCORES} for name in names], ["model", "top1", "top1 95% interval", "top5", "images"]),
    ):
        lines = shown(comparison_table(rows, "model", 80))
        assert max(map(len, lines)) <= 80
        assert re.split(r"  +", lines[0]) == header
        assert [line.split()[0] for line in lines[1:]] == [row["model"] for row in rows]
        assert ("0.3294 to 0.6250" in lines[1]) == ("top1 95% interval" in header)


def test_what_guessing_gives_is_told_once_below_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    console = CommandConsole()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(console, "_print_raw", printed.append)
    failed = {"model": "c", "error": "failed"}
    console.print_comparison([{"model": "a", **SCORES}, {"model": "b", **SCORES}, failed])
    assert "baseline" not in printed[0]
    assert printed[1:] == ["baseline accuracy 0.5000: always guessing the most frequent class"]
    console.print_comparison([{"model": "a", **SCORES}, {"model": "b", **SCORES, "baseline_accuracy": 0.25}])
    assert len(printed) == 3  # of other images each: a column
    assert "baseline" in printed[2]


def test_shares_below_one_another_have_the_same_digits_and_decibels_are_named() -> None:
    told = in_words({"top1": 0.44, "top5": 0.9, "top1_interval": (0.3, 0.5), "psnr": 20.987, "iou": {"red": 0.5}})
    assert shown(facts_table(told)) == [
        "top1  0.4400 (95%: 0.3000 to 0.5000)",
        "top5  0.9000",
        "psnr  20.99 dB",
        "iou   red 0.5000",
    ]


def test_times_of_a_training_are_told_as_the_report_tells_them() -> None:
    """The first three add up to the last."""
    report = {"seconds": 188.0, "measuring_seconds": 2.52, "tokenizer_seconds": 75.0, "total_seconds": 265.52}
    assert in_words(report) == {
        "training time": "3 min 08 s",
        "measuring time": "2.5 s",
        "tokenizer before it": "1 min 15 s",
        "total time": "4 min 26 s",
    }
    assert in_words({"seconds": 12.0}) == {"time": "12 s"}


def test_what_was_measured_on_is_counted_once() -> None:
    assert in_words({"images": 1500, "measured_on": "1,500 held-out images"}) == {
        "measured_on": "1,500 held-out images"
    }
    own = {"images": 50, "measured_on": "held-out/"}
    assert in_words(own) == own
    assert in_words({"mae": 0.1, "mae_normalized": 0.2}) == {"mae": 0.1}


def test_epochs_are_told_as_they_were_asked_for() -> None:
    assert in_words({"epoch": 4.267}, 4.0) == {"epoch": "4, rounded to whole steps: 4.267"}
    assert in_words({"epoch": 4.0}, 4.0) == {"epoch": "4"}
    assert in_words({"epoch": 4.267}) == {"epoch": 4.267}
    assert epochs_text(4.267, 4.0) == "4 epochs, rounded to whole steps: 4.267"
    assert epochs_text(4.267, None) == "4.267 epochs"
    assert epochs_text(1.0, 1.0) == epochs_text(1.0, None) == "1 epoch"
    assert epochs_text(1.067, 1.0) == "1 epoch, rounded to whole steps: 1.067"


def test_what_is_not_read_of_data_is_told_once_and_everything_else_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = CommandConsole()
    opened = openings(console.on_event)
    for event in (Warned("report.html was not written"), Note('  File "a.py", line 1'), Note("a: it learns")) * 2:
        opened("photos/: 1 file not read (.txt).", 0, 0, "")
        console.on_event(event)
    told = ["warning: report.html was not written", '  File "a.py", line 1', "a: it learns"]
    assert capsys.readouterr().err.splitlines() == ["photos/: 1 file not read (.txt).", *told, *told]


def test_statistics_of_masks_are_a_table_on_a_terminal(beit: Callable[..., Ended], tmp_path: Path) -> None:
    words = ["mask-preview", "--stats", "50", "--num-masked", "75", "-o", str(tmp_path / "masks.png")]
    code, said = at_terminal(lambda: main(words), COLUMNS="80")
    lines = screen(said)
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines if "  " in line)
    assert (code, "{" in said) == (0, False)
    assert facts["masks"] == "50"
    assert facts["grid"] == "14 x 14 patches"
    assert facts["hidden patches"] == "75 in each mask"
    assert facts["a patch is hidden in"].endswith("of the masks, 38% on average")
    (exact,) = beit(*words[:-2]).lines
    assert facts["blocks of a mask"].startswith(f"{exact['blocks']['mean']:.3g} on average")
    areas = exact["histograms"]["block_area"]
    mean = sum(area * count for area, count in enumerate(areas)) / sum(areas)
    assert facts["patches of a block"] == f"{mean:.3g} on average"
    *table, output = (line for line in lines if line)
    assert max(map(len, table)) <= 80
    assert output == words[-1]


def test_statistics_of_random_masks_tell_no_blocks() -> None:
    _, said = at_terminal(lambda: main(["mask-preview", "--stats", "5", "--masking", "random"]))
    assert "block" not in said
    assert "-o PICTURE draws them, --json prints every number" in said


def test_a_checkpoint_that_was_long_in_writing_says_why_its_line_is_late(capsys: pytest.CaptureFixture[str]) -> None:
    console = CommandConsole()
    for event in (Saved("", 24, 0.1, 0.5), Saved("", 48, 0.1, 7.25), Saved("", 72, 1.5, 3.0)):
        console.on_event(event)
    assert capsys.readouterr().err.splitlines() == [
        "saved step 24",
        "saved step 48, written in 7.2 s beside the training",
        "saved step 72, written in 3 s beside the training; training waited 1.5 s for it",
    ]
