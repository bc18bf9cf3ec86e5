"""Metrics on their way to a person: a new one of any task reaches the log line, the files, the table and the card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import beitcli
from beitcli.cli import progress as output
from beitcli.engine import pretrain, train_tokenizer
from beitcli.engine.classification import finetune as finetune_classify
from beitcli.engine.detection import finetune as finetune_detect
from beitcli.engine.events import Progress
from beitcli.engine.segmentation import finetune as finetune_segment
from beitcli.runtime.metric_text import counted, extra_metrics, metric_label, metric_texts, metric_value, size_text

SHORT = ["--steps", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu"]
TASKS: dict[str, tuple[Any, str, list[object]]] = {
    "train-tokenizer": (train_tokenizer, "TokenizerTask", ["--recipe", "tiny", "--size", 16, "--width", 8]),
    "pretrain": (pretrain, "PretrainTask", ["--recipe", "tiny", "--image-size", 32, "--num-masked", 6]),
    "classify": (finetune_classify, "FinetuneTask", ["--recipe", "tiny", "--size", 32]),
    "segment": (finetune_segment, "SegmentationTask", ["--recipe", "tiny-segment", "--size", 32]),
    "detect": (
        finetune_detect,
        "DetectionTask",
        ["--recipe", "tiny-detect", "--size", 32, "--head-width", 8, "--regions", 8, "--limit", 12],
    ),
}


FULL_LINES = {  # (task, of training?): what stands there before a further metric
    ("pretrain", True): ["masked accuracy", "loss"],
    ("pretrain", False): ["masked accuracy", "loss"],
    ("train-tokenizer", True): ["loss", "reconstruction", "kl", "usage kl"],
    ("train-tokenizer", False): ["psnr", "mae", "codes used", "perplexity", "commonest share"],
}


def with_toys(kind: type) -> type:
    """The task, with a metric of its training and two of held-out images that nothing else knows of."""

    class Toy(kind):  # type: ignore[misc, valid-type]
        def log_metrics(self) -> dict[str, float]:
            return super().log_metrics() | {"toy_rate": 0.125}

        def evaluate(self, check_stop: Callable[[], None]) -> dict[str, float]:
            return super().evaluate(check_stop) | {"toy_score": 0.4321, "toy_score/red": 0.5}

    return Toy


@pytest.mark.parametrize("name", TASKS)
def test_new_metric_reaches_the_log_line_the_file_the_table_and_the_card(
    beit: Callable, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    module, task, flags = TASKS[name]
    monkeypatch.setattr(module, task, with_toys(getattr(module, task)))
    command = name if name in ("train-tokenizer", "pretrain") else "finetune"
    data = {"segment": "scenes", "detect": None}.get(name, "labelled_folder")
    line = [command, request.getfixturevalue(data) if data else "sample", *flags, *SHORT, "--out", tmp_path / "run"]
    line += ["--tokenizer", request.getfixturevalue("tokenizer_run")] if name == "pretrain" else []
    line += ["--init", "random"] if command == "finetune" else []
    line += ["--ignore-index", 250] if name == "segment" else []
    ended = beit(*line)
    assert ended.code == 0, ended.err
    (logged,) = [json.loads(each) for each in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (logged["toy_rate"], logged["held_out_toy_score"], logged["held_out_toy_score/red"]) == (0.125, 0.4321, 0.5)
    (step,) = [each for each in ended.err.splitlines() if "step 1/1" in each and "loss" in each]
    assert re.search(r": step 1/1, train: (loss|masked accuracy) \d", step)
    (measured,) = [
        each for each in ended.err.splitlines() if re.search(r"step 1, ([\d,]+ )?(held-out|training images?): ", each)
    ]
    for line_of, text in ((step, "toy rate 0.1250"), (measured, "toy score 0.4321")):
        assert len(line_of) <= 150
        told = re.split(r"  |: ", line_of)
        own = FULL_LINES.get((name, line_of == step))
        if own is None:
            assert text in told
        else:  # the task's own metrics fill the line
            assert [re.sub(r"[ -]*[\d.,%]+.*", "", each) for each in told[2 : 2 + len(own)]] == own
        assert "red" not in line_of
    assert re.search(r"^toy score +0\.4321 *$", ended.err, re.MULTILINE)
    assert "| toy score | 0.4321 |" in (tmp_path / "run" / "README.md").read_text()
    document = beit(
        *line[: line.index("--out")], *line[line.index("--out") + 2 :], "--out", tmp_path / "other", "--json"
    )
    assert document.lines[0]["toy_score"] == 0.4321
    assert not {"further", "toy_score/red"} & set(document.lines[0])


# What a line says


PRETRAINING = {
    "gradient_norm": 1.234, "loss": 5.0, "masked_accuracy": 0.1, "lr": 1e-3, "images_per_second": 512.4,
    "baseline_accuracy": 0.05, "unigram_entropy": 4.5, "held_out_loss": 5.25, "held_out_masked_accuracy": 0.25,
    "probe_top1": 0.75,
}  # fmt: skip
DETECTING = {
    "loss": 1.5, "loss_classifier": 0.5, "gradient_norm": 2.0, "lr": 1e-4, "images_per_second": 3.0,
    "held_out_ap": 0.1234, "held_out_ap50": 0.3, "held_out_ap/cat": 0.2, "held_out_images": 5000,
}  # fmt: skip


def in_a_line(metrics: dict[str, float]) -> str:
    return "  ".join(output.figure_texts({name: value for name, value in metrics.items() if "per_second" not in name}))


TOKENIZER = {
    "loss": 0.0345, "reconstruction": 0.0326, "kl": 0.7615, "usage_kl": 0.657, "gradient_norm": 0.06, "lr": 1e-2,
    "temperature": 1.0, "kl_weight": 5e-5, "images_per_second": 32.1, "data_wait_share": 0.58, "held_out_psnr": 11.07,
    "held_out_mae": 0.2174, "held_out_mae_normalized": 0.4348, "held_out_codes_used": 10, "held_out_perplexity": 2.227,
    "held_out_commonest_share": 0.7078,
}  # fmt: skip


def test_lines_of_a_log_are_no_wider_than_150_columns_and_hold_the_key_figures() -> None:
    event = Progress("tokenizer", 1000, 3200, metrics=TOKENIZER)
    line, measured = output.PlainLines().line_of(event), output.held_out_line(event)
    assert line == (
        "tokenizer: step 1,000/3,200, train: loss 0.0345  reconstruction 0.0326  kl 0.7615  usage kl 0.6570  "
        "gradient norm 0.06  32 images/s, data 58%"
    )
    assert measured == (
        "tokenizer: step 1,000, held-out: psnr 11.07 dB  mae 0.2174  codes used 10  perplexity 2.227  "
        "commonest share 0.7078"
    )
    key = {"masked_accuracy": 0.42, "baseline_accuracy": 0.38, "loss": 5.0, "unigram_entropy": 1.88, "lr": 1e-3}
    speed = {"images_per_second": 1934.2, "data_wait_share": 0.03}
    assert output.PlainLines().line_of(Progress("pretrain", 1240, 3200, metrics=speed | key)) == (
        "pretrain: step 1,240/3,200, train: masked accuracy 42.0% = 1.1 x guessing (38.0%)  loss 5.00, 3.12 above "
        "entropy 1.88  1,934 images/s, data 3%"
    )
    assert output.PlainLines().line_of(Progress("pretrain", 12, 32, metrics=speed | key)) == (
        "pretrain: step 12/32, train: masked accuracy 42.0% = 1.1 x guessing (38.0%)  loss 5.00, 3.12 above entropy "
        "1.88  lr 1.00e-03  1,934 images/s, data 3%"
    )
    many = {f"loss_of_part_{number}": 1.0 for number in range(20)}
    long = Progress("finetune", 1, 9, metrics={"loss": 1.5} | many | {f"held_out_{name}": 1.0 for name in many})
    for text in (output.PlainLines().line_of(long) or "", output.held_out_line(long)):
        assert 120 < len(text) <= 150


def test_a_terminal_without_a_cursor_breaks_a_line_between_figures() -> None:
    line = "pretrain: step 12/32, train: masked accuracy 42.0% = 1.1 x guessing  loss 5.00, 3.12 above entropy 1.88  "
    parts = output.broken_between_figures(f"{line}1,934 images/s, data 3%", 80)
    assert parts == [
        "pretrain: step 12/32, train: masked accuracy 42.0% = 1.1 x guessing",
        "    loss 5.00, 3.12 above entropy 1.88  1,934 images/s, data 3%",
    ]
    assert output.broken_between_figures(line, 150) == [line]


def test_the_live_line_labels_figures_of_training_where_held_out_ones_follow() -> None:
    metrics = {"loss": 0.5, "held_out_top1": 0.75}
    assert output._live_figures(metrics) == ["train: loss 0.5000", "held-out top1 0.7500"]
    assert output._live_figures({"loss": 0.5}) == ["loss 0.5000"]


def test_line_begins_with_the_figures_beside_their_baselines() -> None:
    assert in_a_line(PRETRAINING) == (
        "masked accuracy 10.0% = 2.0 x guessing  loss 5.00, 0.50 above entropy 4.50  probe top1 0.7500  "
        "held-out masked accuracy 0.250  held-out loss 5.2500  gradient norm 1.23  lr 1.00e-03"
    )


def test_guessing_is_told_where_figures_of_training_and_of_measured_images_stand_together() -> None:
    """Each factor is of the frequencies of its own tokens."""
    training = {"masked_accuracy": 0.047, "baseline_accuracy": 0.0075}
    measured = {"held_out_masked_accuracy": 0.05, "held_out_baseline_accuracy": 0.009, "held_out_measured_images": 500}
    event = Progress("pretrain", 80, 400, metrics=training | measured)
    assert output.PlainLines().line_of(event) == (
        "pretrain: step 80/400, train: masked accuracy 4.7% = 6.3 x guessing (0.75%)"
    )
    told = "pretrain: step 80, 500 held-out: masked accuracy 5.0% = 5.6 x guessing (0.90%)"
    assert output.held_out_line(event, 80) == told


def test_average_precision_is_shown_and_what_is_of_one_class_is_not() -> None:
    assert in_a_line(DETECTING) == (
        "loss 1.5000  held-out ap 0.1234  held-out ap50 0.3000  loss classifier 0.5000  gradient norm 2.00  lr 1.00e-04"
    )


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"skipped_steps": 0, "compiled": 1.0, "save_stall_seconds": 0.2}, ""),
        ({"skipped_steps": 2}, "skipped steps 2"),
        ({"compiled": 0.0}, "compiled 0"),
        ({"save_stall_seconds": 3.5}, "save stall seconds 3.500"),
    ],
    ids=str,
)
def test_what_is_internal_is_shown_where_it_matters(metrics: dict[str, float], line: str) -> None:
    assert in_a_line(metrics) == line


def test_narrow_line_cuts_no_figure_in_two() -> None:
    texts = ["loss 5.0000", "masked accuracy 0.100"]
    found = [output.fitting(texts, room) for room in (-5, 0, 10, 11, 33, 34)]
    assert found == ["", "", "", "loss 5.0000", "loss 5.0000", "loss 5.0000  masked accuracy 0.100"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("main_loss", 1.5, "1.5000"),
        ("loss_rpn_box_reg", 0.25, "0.2500"),
        ("kl_weight", 5e-5, "5.00e-05"),
        ("held_out_codes_used", 255, "255"),
        ("held_out_perplexity", 241.84, "241.8"),
        ("held_out_psnr", 20.987, "20.99 dB"),
        ("measured_patches", 12500, "12,500"),
        ("measured_patches", 12500.0, "12,500.0"),
        ("kl", 2.3456, "2.346"),
        ("reconstruction", 0.012345, "0.0123"),
        ("reconstruction", 0.00012345, "1.23e-04"),
        ("toy", 0.0, "0.0000"),
        ("toy", -12.5, "-12.50"),
        ("toy", float("inf"), "inf"),
    ],
    ids=str,
)
def test_value_has_the_digits_of_its_kind(name: str, value: float, text: str) -> None:
    assert metric_value(name, value) == text


def test_label_is_words() -> None:
    assert metric_label("held_out_mask_ap50") == "held-out mask ap50"
    assert metric_texts({}) == []


def test_further_metrics_are_those_without_a_field_or_a_class() -> None:
    assert extra_metrics({"top1": 1.0, "toy": 0.5, "iou/toy": 0.25}, ["top1", "run"]) == {"toy": 0.5}


def test_one_of_a_thing_is_singular():
    assert [counted(number, "step") for number in (0, 1, 2, 1200)] == ["0 steps", "1 step", "2 steps", "1,200 steps"]


def test_a_line_says_how_many_images_its_metrics_are_of_and_which() -> None:
    measured = {"held_out_top1": 0.5, "held_out_images": 12}
    for images, on_training, label in (
        (1200, False, "1,200 held-out"), (1, False, "1 held-out"), (6, True, "6 training images"),
        (1, True, "1 training image"),
    ):  # fmt: skip
        event = Progress("finetune", 5, 9, metrics=measured | {"held_out_images": images}, on_training=on_training)
        assert output.held_out_line(event) == f"finetune: step 5, {label}: top1 0.5000"
    unknown = Progress("finetune", 5, 9, metrics={"held_out_top1": 0.5}, on_training=True)
    assert output.held_out_line(unknown) == "finetune: step 5, training images: top1 0.5000"
    live = output._live_figures({"loss": 0.5, "held_out_top1": 0.75}, on_training=True)
    assert live == ["train: loss 0.5000", "training-image top1 0.7500"]


def test_top5_of_few_classes_is_left_out_of_lines() -> None:
    measured = {"held_out_top1": 0.5, "held_out_top5": 1.0}
    for classes, top5 in ((5, ""), (6, "  top5 1.000"), (0, "  top5 1.000")):  # by their number, not by the value
        told = output.held_out_line(Progress("finetune", 5, 9, metrics=measured, classes=classes))
        assert told.endswith(f"held-out: top1 0.5000{top5}")


# Sizes


def test_bytes_have_three_digits_in_any_unit() -> None:
    sizes = [0, 999, 999.6, 12_345, 9_840_000, 999_600_000, 50_300_000_000, 1_500_000_000_000, 2_345_000_000_000_000]
    texts = ["0 B", "999 B", "1 kB", "12.3 kB", "9.84 MB", "1 GB", "50.3 GB", "1.5 TB", "2,345 TB"]
    assert [size_text(each) for each in sizes] == texts


def test_bytes_are_formatted_in_one_place() -> None:
    """But for the counter of a download, which keeps its unit."""
    package = Path(beitcli.__file__).parent
    others = re.compile(r"/ ?1e[369]:[^}]*\}[^\"]*\b[kMGT]B\b")
    found = [
        path.name for path in package.rglob("*.py") for line in path.read_text().splitlines() if others.search(line)
    ]
    assert found == ["progress.py"]
