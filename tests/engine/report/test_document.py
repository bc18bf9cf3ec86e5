"""The report as data: what it reads from the files of runs, also where they are damaged or hostile."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.document import charts_of, differing_settings, thinned
from beitcli.engine.report.page import distinct_names, report_document, report_page
from beitcli.engine.report.record import preview_files, read_record

HOSTILE = "<img src=x onerror=alert(1)>"
JPEG = "data:image/jpeg;base64,AAAA"


def page_data(page: str) -> dict[str, Any]:
    """The data of a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def write_run(folder: Path, *, lr: float = 0.001, steps: int = 40) -> Path:
    """A run of files alone: a pretraining that is measured every 10 steps, two unreadable images, two previews."""
    (folder / "previews").mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'command = "pretrain"\nrecipe = "tiny"\ndata = ["photos/{HOSTILE}"]\nlr = {lr}\nsteps = {steps}\n'
    )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "epoch": step / 10, "loss": 7 - step / 40, "masked_accuracy": step / 1000}
            row |= {"baseline_accuracy": 0.005, "unigram_entropy": 6.8, "images_per_second": 50.0, "lr": lr}
            if step % 10 == 0:
                row |= {f"held_out_{name}": row[name] for name in ("loss", "masked_accuracy")}
                row |= {"held_out_baseline_accuracy": 0.006, "held_out_unigram_entropy": 6.7}
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 41, "lo')  # a killed process
    bad = [{"path": f"{HOSTILE}{number}.jpg", "error": "no image"} for number in range(2)]
    (folder / "bad-images.jsonl").write_text("".join(json.dumps(each) + "\n" for each in bad))
    for step in (10, 40):
        Image.new("RGB", (64, 32), (step, 90, 120)).save(folder / "previews" / f"step-{step:07d}.png")
    return folder


def saved(folder: Path, *, step: int = 40, planned: int | None = 40) -> Path:
    """Adds the card, and before it the small files of a checkpoint."""
    newest = folder / "checkpoints" / f"step-{step:07d}"
    newest.mkdir(parents=True)
    progress = {"step": step} if planned is None else {"step": step, "planned_steps": planned}
    (newest / "trainer.json").write_text(json.dumps(progress))
    (folder / "README.md").write_text("# A run\n")
    return folder


def classified(folder: Path, classes: list[str], confusion: list[list[int]]) -> Path:
    """Adds evaluation.json of a classifier, with one mistake."""
    mistake = {"path": f"{HOSTILE}.jpg", "class": classes[0], "predicted": HOSTILE, "probability": 0.9}
    document = {
        "task": "classify",
        "classes": classes,
        "confusion": confusion,
        "worst": [mistake | {"picture": JPEG}],
    }
    (folder / "evaluation.json").write_text(json.dumps(document))
    return folder


def test_the_document_has_verdict_curves_previews_and_next_commands(tmp_path: Path) -> None:
    run = saved(write_run(tmp_path / "a"))
    document = report_document([run])
    (told,) = document["runs"]
    assert told["verdict"]["grade"] == "good"
    assert told["verdict"]["text"].startswith("It is learning: 4.0% of the hidden tokens right, 6.7 times")
    assert (told["step"], told["state"], told["bad"]["count"]) == (40, "done", 2)
    chart = next(each for each in document["charts"] if each["name"] == "loss")
    assert [(line["role"], len(line["points"])) for line in chart["series"]] == [
        ("training", 40), ("held-out", 4), ("baseline", 4),
    ]  # fmt: skip
    assert chart["series"][1]["points"] == [[10, 6.75], [20, 6.5], [30, 6.25], [40, 6.0]]
    assert [each["step"] for each in document["previews"][0]["pictures"]] == [10, 40]
    assert [line.split()[1] for line in told["next"]] == ["mask-preview", "attn-map", "finetune"]
    assert document["differing"] == []


def test_a_reader_without_javascript_gets_verdict_figures_and_next_commands(tmp_path: Path) -> None:
    page = report_page([saved(write_run(tmp_path / "a")), write_run(tmp_path / "b")])
    plain = page.partition("<body>\n<noscript>")[2].partition("</noscript>")[0]
    assert plain.count("<p>It is learning: 4.0% of the hidden tokens right, 6.7 times") == 2
    assert '<tr><th scope="row">loss</th><td>6.0000</td></tr>' in plain
    assert "beit finetune" in plain
    assert HOSTILE not in plain


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lr=0.002, steps=20)]
    rows = {row["name"]: row["values"] for row in differing_settings([read_record(run) for run in runs])}
    assert rows == {"lr": ["0.001", "0.002"], "steps": ["40", "20"]}
    loss = next(each for each in charts_of([read_record(run) for run in runs]) if each["name"] == "loss")
    assert [line["run"] for line in loss["series"]] == [0, 0, 0, 1, 1, 1]
    assert distinct_names([tmp_path / "x/a", tmp_path / "y/a"]) == ["x/a", "y/a"]


def test_figures_of_classes_are_counted_by_hand(tmp_path: Path) -> None:
    run = classified(write_run(tmp_path / "a"), ["cat", "dog"], [[0, 0, 4], [1, 1, 3], [0, 1, 1], [1, 0, 2]])
    found = class_tables(read_record(run))
    dog, cat = found["rows"]
    assert (dog["class"], dog["images"], dog["right"], dog["value"], dog["precision"]) == ("dog", 5, 3, 0.6, 0.75)
    assert (cat["value"], cat["precision"]) == (0.8, pytest.approx(2 / 3))
    assert found["matrix"] == {"classes": ["cat", "dog"], "counts": [[4, 1], [2, 3]]}
    assert found["pairs"] == [["dog", "cat", 2, 5], ["cat", "dog", 1, 5]]


@pytest.mark.parametrize(
    "evaluation",
    [
        '{"task": "classify"}',
        '{"task": "classify", "classes": ["a"], "confusion": [[5, 0, 1]]}',
        '{"task": "classify", "classes": 7, "confusion": [[0, 0, "many"]]}',
        '{"task": "segment", "classes": ["a"], "labelled": [1], "predicted": [], "hits": []}',
        "[1, 2]", "not json", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_strange_evaluation_leaves_its_tables_out(tmp_path: Path, evaluation: str) -> None:
    run = write_run(tmp_path / "a")
    (run / "evaluation.json").write_text(evaluation)
    assert "rows" not in class_tables(read_record(run))
    assert "<!doctype html>" in report_page([run])


def test_a_picture_that_is_no_jpeg_of_ours_does_not_reach_the_page(tmp_path: Path) -> None:
    run = classified(write_run(tmp_path / "a"), ["cat"], [[0, 0, 1]])
    document = json.loads((run / "evaluation.json").read_text())
    document["worst"][0]["picture"] = "https://example.org/x.jpg"
    (run / "evaluation.json").write_text(json.dumps(document))
    assert "example.org" not in report_page([run])


def test_previews_of_a_linked_folder_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "previews" / "step-0000020.png").write_bytes(b"no picture")
    assert report_page([run]).count("data:image/jpeg") == 2
    (tmp_path / "b").symlink_to(run / "previews")
    assert preview_files(tmp_path / "b") == []


def test_a_run_whose_previews_are_all_damaged_has_none(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    for preview in (runs[0] / "previews").iterdir():
        preview.write_bytes(b"no picture")
    (strip,) = page_data(report_page(runs))["previews"]
    assert (strip["name"], len(strip["pictures"])) == ("b", 2)


MISTAKE = {"path": "a.jpg", "class": "cat", "predicted": "dog", "probability": 0.9, "picture": JPEG}


@pytest.mark.parametrize(
    ("mistake", "kept"),
    [
        ({"path": None}, None),
        ({"picture": None}, None),
        ({"picture": "https://example.org/x.jpg"}, None),
        ({"probability": None}, {"path", "picture", "class", "predicted"}),
        ({"probability": "much"}, {"path", "picture", "class", "predicted"}),
        ({"probability": 70}, {"path", "picture", "class", "predicted"}),
        ({"predicted": [1], "wrong": -1, "note": "x"}, {"path", "picture", "class", "probability"}),
    ],
)
def test_a_mistake_keeps_the_facts_that_are_of_ours(tmp_path: Path, mistake: dict, kept: set[str] | None) -> None:
    run = classified(write_run(tmp_path / "a"), ["cat"], [[0, 0, 1]])
    document = json.loads((run / "evaluation.json").read_text())
    document["worst"] = ["none", MISTAKE, MISTAKE | mistake]
    (run / "evaluation.json").write_text(json.dumps(document))
    found = class_tables(read_record(run))["worst"]
    assert found[0] == MISTAKE
    assert [set(each) for each in found[1:]] == ([] if kept is None else [kept])


def test_a_guess_that_is_never_right_has_its_reason_beside_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    rows = [{"step": step, "held_out_masked_accuracy": 0.02, "held_out_baseline_accuracy": 0.0} for step in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reason = "always the most frequent token of training, which no measured patch has"
    (told,) = report_document([run])["runs"]
    (figure,) = (each for each in told["figures"] if each["name"] == "baseline accuracy")
    assert (figure["title"], figure["text"]) == (f"accuracy of {reason}", "0.0%")
    (chart,) = charts_of([read_record(run)])
    assert [line["label"] for line in chart["series"]] == ["held-out images", reason]


def test_figures_of_one_kind_are_written_alike(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    held_out = {"top1": 1.0, "top5": 1, "miou": 0.302, "ap": 0.0, "images": 1234.0, "loss": 2}
    held_out |= {"measured_images": 500, "measured_patches": 12500, "masked_accuracy_std_error": 0.003}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            "\n" + json.dumps({"step": 50} | {f"held_out_{name}": each for name, each in held_out.items()}) + "\n"
        )
    (told,) = report_document([run])["runs"]
    sure = "of 1,234 images (95%: 99.7% to 100.0%)"
    assert {each["name"]: each["text"] for each in told["figures"]} == {
        "top1": "100.0%", "top5": "100.0%", "miou": "30.2%", "ap": "0.0%", "images": "1,234", "loss": "2.0000",
    }  # fmt: skip
    assert [each["title"] for each in told["figures"]] == [
        "loss", f"top-1 accuracy {sure}", f"top-5 accuracy {sure}", "mean IoU of 1,234 images",
        "AP of 1,234 images", "images",
    ]  # fmt: skip
    assert told["facts"]["measured on"] == "500 held-out images, 12,500 patches"
    named = {each["name"]: each for each in told["figures"]}
    assert named["top1"]["interval"] == pytest.approx((0.9969, 1.0), abs=1e-4)
    assert {name for name, each in named.items() if each.get("images") == 1234} == {"top1", "top5", "miou", "ap"}
    assert "interval" not in named["miou"]
    page = report_page([run])
    assert '<th scope="row">mean IoU of 1,234 images</th>' in page


def test_a_curve_has_the_interval_of_each_measuring(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    images = {"held_out_images": 100}
    rows = [
        {"step": 10, "held_out_top1": 0.5, "held_out_miou": 0.3} | images,
        {"step": 20, "held_out_masked_accuracy": 0.08, "held_out_masked_accuracy_std_error": 0.01}
        | {"held_out_measured_images": 11},
        {"step": 30, "held_out_masked_accuracy": 0.01, "held_out_masked_accuracy_std_error": 0.01},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = {chart["name"]: chart["series"][0] for chart in charts_of([read_record(run)])}
    assert lines["top1"]["spans"] == [[10, pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4)]]
    half = 0.01 * 2.22814  # Student's, of 10 degrees of freedom
    assert lines["masked_accuracy"]["spans"] == [
        [20, pytest.approx(0.08 - half, abs=1e-6), pytest.approx(0.08 + half, abs=1e-6)],
        [30, 0.0, pytest.approx(0.0296, abs=1e-4)],
    ]
    assert "spans" not in lines["miou"]


def test_the_interval_of_none_right_is_about_that_of_one_right(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    of = {"held_out_measured_images": 10, "held_out_measured_patches": 250}
    rows = [
        {"step": step, "held_out_masked_accuracy": share, "held_out_masked_accuracy_std_error": share} | of
        for step, share in ((10, 0.004), (20, 0.0), (30, 0.004))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chart,) = charts_of([read_record(run)])
    one, none = 0.004 * (1 + 2.26216), 1.959964**2 / (250 + 1.959964**2)  # Student's over images, Wilson's of patches
    ends = [pytest.approx(end, abs=1e-6) for end in (one, none, one)]
    assert chart["series"][0]["spans"] == [[10, 0.0, ends[0]], [20, 0.0, ends[1]], [30, 0.0, ends[2]]]


def test_a_classifier_is_drawn_beside_the_most_frequent_class(tmp_path: Path) -> None:
    run = classified(write_run(tmp_path / "a"), ["cat", "dog"], [[0, 0, 4], [0, 1, 1], [1, 1, 3]])
    rows = [{"step": step, "held_out_top1": step / 40} for step in (10, 20, 40)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chart,) = charts_of([read_record(run)])
    assert (chart["name"], chart["share"]) == ("top1", True)
    assert chart["series"][1] == {
        "run": 0, "role": "baseline", "label": "always the most frequent class", "points": [[10, 0.625], [40, 0.625]],
    }  # fmt: skip
    (run / "evaluation.json").unlink()
    assert [line["role"] for line in charts_of([read_record(run)])[0]["series"]] == ["held-out"]


def test_a_segmenter_is_drawn_beside_the_most_frequent_class(tmp_path: Path) -> None:
    """6 of 8 pixels are of one class: 6/8 right; the mean IoU of the two that occur, of three, is (6/8 + 0) / 2."""
    run = write_run(tmp_path / "a")
    evaluation = {"task": "segment", "labelled": [6, 2, 0], "predicted": [6, 2, 0], "hits": [6, 2, 0]}
    evaluation["classes"] = ["sky", "sea", "absent"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    row = {"step": 10, "held_out_miou": 0.5, "held_out_pixel_accuracy": 0.9, "held_out_mean_accuracy": 0.8}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 20}) + "\n")
    guesses = {
        chart["name"]: line["points"]
        for chart in charts_of([read_record(run)])
        for line in chart["series"]
        if line["role"] == "baseline"
    }
    assert guesses == {"miou": [[10, 0.375], [20, 0.375]], "pixel_accuracy": [[10, 0.75], [20, 0.75]]}


def test_long_curves_are_thinned_to_their_last_point() -> None:
    points = [(step, np.float64(step) / 3) for step in range(1, 5001)]
    found = thinned(points)
    assert 300 <= len(found) <= 401
    assert (found[0][0], found[-1][0]) == (1, 5000)


def test_report_writes_the_page_and_prints_its_name(beit: Callable, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    ended = beit("report", runs[0])
    assert (ended.code, ended.out) == (0, f"{runs[0]}/report.html\n")
    assert "It is learning" in ended.err
    assert beit("report", runs[0]).code == 0  # its own page is replaced
    both = tmp_path / "both.html"
    assert beit("report", *runs, "-o", both, "--json").lines[0]["page"] == str(both)
    assert beit("report", *runs, "-o", both).code == 2
    assert beit("report", *runs, "-o", both, "--overwrite").code == 0
    assert beit("report", tmp_path).code == 3
    assert HOSTILE not in both.read_text()


def test_a_page_that_is_named_is_an_output_as_any_other(beit: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    deep, empty, link = tmp_path / "new" / "folder" / "a.html", tmp_path / "empty.html", tmp_path / "link.html"
    assert beit("report", run, "-o", deep).code == 0
    empty.touch()
    assert beit("report", run, "-o", empty).code == 0
    assert empty.read_bytes() == deep.read_bytes()
    link.symlink_to(tmp_path / "there.html")
    assert beit("report", run, "-o", link).code == 0
    assert link.is_symlink()
    assert (tmp_path / "there.html").read_bytes() == deep.read_bytes()
    assert beit("report", run, "-o", link).code == 2
    assert beit("report", run, "-o", link, "--overwrite").code == 0
    assert beit("report", run, "-o", tmp_path / "page.txt").code == 2
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        assert beit("report", run, "-o", pipe).code == 0
        assert read.result() == deep.read_bytes()
    (run / "report.html").unlink(missing_ok=True)
    (run / "report.html").symlink_to(tmp_path / "other.html")
    assert beit("report", run).code == 4  # a link in a run may be a stranger's
    assert not (tmp_path / "other.html").exists()


HUGE = 10**400


def test_numbers_beyond_every_float_are_left_out(beit: Callable, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
        for row in ({"step": 41, "loss": HUGE, "held_out_loss": HUGE, "epoch": 5}, {"step": HUGE, "loss": 1.0}):
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 42, "loss": Infinity, "epoch": 6}\n')
    newest = run / "checkpoints" / "step-0000040"
    newest.mkdir(parents=True)
    (newest / "trainer.json").write_text(json.dumps({"step": HUGE, "seconds": HUGE, "figures": {"loss": HUGE}}))
    record = read_record(run)
    assert [row["step"] for row in record.rows[-3:]] == [40, 41, 42]
    assert record.rows[-2:] == [{"step": 41, "epoch": 5}, {"step": 42, "epoch": 6}]
    assert (record.time.total, record.step) == (0, 0)
    classified(run, ["a", "b"], [[0, 0, HUGE], [0, 1, 1]])
    (run / "evaluation.json").write_text((run / "evaluation.json").read_text().replace("[0, 1, 1]", "[0, 1, Infinity]"))
    assert beit("report", run).code == 0
    (run / "config.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    ended = beit("report", run)
    assert (ended.code, "nested too deeply" in ended.err) == (3, True)
