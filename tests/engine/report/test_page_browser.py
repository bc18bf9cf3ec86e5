"""The report in a real browser: no request, no error, foreign names as text, curves and previews by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.resolve import resolve
from beitcli.engine.finetune import finetune
from beitcli.engine.report.page import report_page
from beitcli.pictures.canvas import PREVIEW_TEXT, Panel, sheet
from tests.engine.report.test_document import HOSTILE, classified, saved, write_run
from tests.helpers.browser import HOSTILE_FILE, WIDTHS, chromium, watched
from tests.helpers.coco_folder import changed
from tests.helpers.detection_runs import config_of
from tests.helpers.scenes import IGNORE

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> Path:
    """4 steps of a detector that is measured on an image with a hostile name."""
    root = tmp_path_factory.mktemp("detector")
    data = Path(shutil.copytree(rectangles, root / "data"))
    (data / "val" / "00.png").rename(data / "val" / HOSTILE_FILE)
    annotations = data / "annotations" / "instances_val.json"
    changed(annotations, lambda document: document["images"][0].update(file_name=HOSTILE_FILE))
    finetune(config_of(data, out=str(root / "run")))
    return root / "run"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """4 steps of a segmenter that is measured on an image with a hostile name."""
    root = tmp_path_factory.mktemp("segmenter")
    data = Path(shutil.copytree(scenes, root / "data"))
    for kind in ("images", "masks"):
        image = sorted((data / "val" / kind).glob("*.png"))[0]
        image.rename(image.with_name(Path(HOSTILE_FILE).stem + ".png"))
    flags = {"recipe": "tiny-segment", "init": "random", "size": 32, "ignore_index": IGNORE, "steps": 4}
    flags |= {"save_every": 2, "batch_size": 4, "log_every": 1, "warmup_steps": 1, "device": "cpu", "workers": 0}
    flags |= {"data": [str(data)], "classes": str(data / "names.txt"), "out": str(root / "run")}
    finetune(resolve(FinetuneConfig, flags).config)
    return root / "run"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.{2 if 0 < share < 0.01 else 1}f}%"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "two"])
def test_the_report_is_read_scrubbed_and_asks_nothing_of_the_network(
    browser: Any, tmp_path: Path, width: int, several: bool
) -> None:
    run = classified(write_run(tmp_path / "a"), [HOSTILE, "dog"], [[0, 0, 4], [1, 1, 3], [0, 1, 1]])
    runs = [run, write_run(tmp_path / "b", lr=0.01)] if several else [run]
    (tmp_path / "page.html").write_text(report_page(runs))
    with watched(browser, tmp_path / "page.html", width) as page:
        assert "It is learning: 4.0% of the hidden tokens right" in page.text_content("#runs")
        assert HOSTILE in page.text_content("#classes")
        assert page.locator("#differing").is_visible() is several
        assert "true class \u2193 predicted \u2192" in page.text_content("#classes .matrix")
        mistake = page.text_content("#classes .worst li")
        assert mistake.startswith(f"predicted {HOSTILE} (90%)actually {HOSTILE}")

        # a curve, by its keys: the last held-out loss is 6
        chart = page.locator("#charts figure", has=page.locator("figcaption", has_text="loss")).first
        chart.locator("svg").focus()
        page.keyboard.press("End")
        assert "step 40" in chart.locator(".readout").text_content()
        assert "held-out images 6" in chart.locator(".readout").text_content()
        page.keyboard.press("Home")
        assert "step 1" in chart.locator(".readout").text_content()

        # previews, by the slider's keys and by the buttons
        assert page.text_content("#preview-step") == "step 40"
        last = page.get_attribute("#preview-pictures img", "src")
        page.focus("#scrub")
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#preview-step") == "step 10"
        assert page.get_attribute("#preview-pictures img", "src") != last
        page.click("#later")
        assert page.get_attribute("#preview-pictures img", "src") == last

        # the logarithm and the smoothing draw again; a head of the table sorts
        for change in ("#log", "#smooth"):
            before = chart.locator("svg").inner_html()
            page.check(change) if change == "#log" else page.fill(change, "0.9")
            assert chart.locator("svg").inner_html() != before
        page.locator("#classes th button").first.click()
        assert page.locator("#classes tbody tr").first.text_content().startswith(HOSTILE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "two"])
def test_the_captions_of_previews_are_legible(browser: Any, tmp_path: Path, width: int, several: bool) -> None:
    """Four pictures of 256 pixels side by side; a narrow page scrolls them, by keys too."""
    runs = [write_run(tmp_path / name) for name in ("a", "b")[: 1 + several]]
    picture = sheet([Panel(Image.new("RGB", (256, 256)), "hidden") for _ in range(4)], size=PREVIEW_TEXT)
    for run in runs:
        picture.save(run / "previews" / "step-0000040.png")
    (tmp_path / "page.html").write_text(report_page(runs))
    with watched(browser, tmp_path / "page.html", width) as page:
        shown = page.evaluate("document.querySelector('#preview-pictures img').getBoundingClientRect().width")
        assert PREVIEW_TEXT * shown / picture.width >= 12
        scrolled = page.locator("#preview-pictures .scroll").first
        hint = page.locator("#preview-pictures .hint").first
        if width < 600:  # what is off the page is told, until the end is seen
            page.locator("#preview-pictures .hint:not(:empty)").first.wait_for()
            assert hint.text_content() == "the pictures go on to the right"
            scrolled.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
            page.locator("#preview-pictures .hint:empty").first.wait_for(state="attached")
            scrolled.evaluate("(box) => { box.scrollLeft = 0; }")
            page.locator("#preview-pictures .hint:not(:empty)").nth(int(several)).wait_for()
        tops = [page.locator(name).bounding_box()["y"] for name in ("#earlier", "#later")]
        assert tops[0] == tops[1]
        scrolled.focus()
        page.keyboard.press("ArrowRight")
        if scrolled.evaluate("(box) => box.scrollWidth > box.clientWidth"):
            for _ in range(100):  # the page's policy forbids what `wait_for_function` evaluates
                if scrolled.evaluate("(box) => box.scrollLeft"):
                    break
                page.wait_for_timeout(50)
            assert scrolled.evaluate("(box) => box.scrollLeft") > 0
        assert scrolled.evaluate("(box) => box.clientWidth") <= width
        assert page.text_content("#previews-title") == "Held-out images over training"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("task", ["segmenter", "detector"])
def test_the_page_of_a_dense_task_has_the_numbers_of_json(
    browser: Any, beit: Callable, request: pytest.FixtureRequest, tmp_path: Path, task: str, width: int
) -> None:
    run = request.getfixturevalue(task)
    (told,) = beit("report", run, "-o", tmp_path / "page.html", "--json").lines[0]["runs"]
    classes = told["classes"]
    with watched(browser, tmp_path / "page.html", width) as page:
        assert told["verdict"]["text"] in page.text_content("#runs")
        assert page.locator(".figures b").all_text_contents() == [each["text"] for each in told["figures"]][:8]
        assert "done, step 4" in page.text_content("#runs h2")

        table = page.locator("#classes table").first
        titles = table.locator("th").all_text_contents()
        shown = [row.locator("td").all_text_contents() for row in table.locator("tbody tr").all()]
        assert [cells[0] for cells in shown] == [row["class"] for row in classes["rows"]]
        for title, name in ((classes["metric"], "value"), ("recall", "recall")):
            values = [cells[titles.index(title)] for cells in shown]
            assert values == [percent(row[name]) for row in classes["rows"]], title

        worst = page.locator("#classes .worst li")
        assert worst.count() == len(classes["worst"]) > 1
        assert Path(HOSTILE_FILE).stem in page.text_content("#classes .worst")
        if task == "detector":
            assert worst.first.locator("img").count() == 2
            assert f"0 of {classes['worst'][0]['objects']} object" in worst.first.text_content()
        else:
            assert worst.first.locator("figcaption").all_text_contents() == ["image", "labelled", "predicted"]
            assert classes["worst_note"] in page.text_content("#classes")
            assert page.locator("#classes .keys li").count() == len(classes["legend"])
            sums = [sum(row) or 1 for row in classes["matrix"]["counts"]]
            shown = [row.locator("td").all_text_contents() for row in page.locator(".matrix tbody tr").all()]
            due = [[100 * n / of for n in row] for row, of in zip(classes["matrix"]["counts"], sums, strict=True)]
            for cells, shares in zip(shown, due, strict=True):
                for cell, share in zip(cells, shares, strict=True):
                    assert cell == ("\u00b7" if not share else "<1%" if share < 0.5 else f"{int(share + 0.5)}%")
        for picture in worst.locator("img").all():
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def measured(folder: Path, rows: list[dict[str, float]], classes: int = 25) -> Path:
    """A classifier of files alone: its measurings, and as many predictions of each class as each other."""
    run = write_run(folder)
    (run / "config.toml").write_text('command = "finetune"\nrecipe = "tiny"\n')
    lines = [{"step": 10 * n, **{f"held_out_{k}": v for k, v in row.items()}} for n, row in enumerate(rows, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [f"n014435{number:02d}" for number in range(classes)]
    return classified(run, names, [[t, p, 2] for t in range(classes) for p in range(classes)])


def test_a_difference_within_the_interval_does_not_fill_a_chart(browser: Any, tmp_path: Path) -> None:
    shown = measured(tmp_path / "a", [{"top1": 0.097, "images": 5000}, {"top1": 0.1, "images": 5000}], classes=2)
    (shown / "evaluation.json").unlink()
    rough = measured(tmp_path / "b", [{"mean_ap": 0.3, "images": 9}, {"mean_ap": 0.301, "images": 9}])
    for run, whiskers, most in ((shown, 2, 0.25), (rough, 0, 0.1)):
        (tmp_path / "page.html").write_text(report_page([run]))
        with watched(browser, tmp_path / "page.html", 1440) as page:
            page.set_default_timeout(10_000)
            chart = page.locator("#charts figure").first
            heights = [float(dot.get_attribute("cy")) for dot in chart.locator("circle").all()]
            assert 0 < heights[0] - heights[1] < most * 220
            assert chart.locator(".whisker").count() == whiskers
            if whiskers:
                assert "10.0% (95%: 9.2% to 10.9%)" in chart.locator(".readout").text_content()
                assert "95% interval" in page.text_content("#legend")
                drawn = [mark.bounding_box() for mark in chart.locator(".whisker").all()]
                frame = chart.locator("svg").bounding_box()
                assert all(frame["y"] <= each["y"] and each["height"] > 20 for each in drawn)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_stay_whole_and_what_lies_beyond_the_edge_is_told(browser: Any, tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html").write_text(report_page([measured(tmp_path / "a", [{"top1": 0.04, "images": 1250}])]))
    with watched(browser, tmp_path / "page.html", width) as page:
        page.set_default_timeout(10_000)
        lines = "names => names.map(name => name.getClientRects().length * name.getBoundingClientRect().height)"
        heights = page.locator("#classes table .word").evaluate_all(lines)
        assert max(heights) < 30  # pixels: one line each
        rows, columns = page.locator("#classes .hint").all()
        page.wait_for_function("document.querySelectorAll('#classes .hint')[1].textContent")
        assert "more rows below" in rows.text_content()
        assert ("to the right" in rows.text_content()) is (width < 500)
        assert "more columns to the right" in columns.text_content()
        box = page.locator("#classes .scroll.tall")
        box.evaluate("box => { box.scrollTop = box.scrollHeight; box.scrollLeft = box.scrollWidth; }")
        page.wait_for_function("!document.querySelector('#classes .hint').textContent")
        assert "more-below" not in box.get_attribute("class")


def test_a_constant_curve_is_drawn_when_it_is_smoothed(browser: Any, tmp_path: Path) -> None:
    """Its smoothed values differ by rounding alone, too little for an axis to go on by."""
    (tmp_path / "page.html").write_text(report_page([write_run(tmp_path / "a", lr=0.001)]))
    with watched(browser, tmp_path / "page.html", 1440) as page:
        page.set_default_timeout(10_000)
        page.click("#more summary")
        page.fill("#smooth", "0.9")
        chart = page.locator("#more-charts figure", has=page.locator("figcaption", has_text="learning rate"))
        assert 2 <= chart.locator("line.grid").count() <= 12


def test_the_axis_of_steps_begins_at_0(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(report_page([write_run(tmp_path / "a")]))
    with watched(browser, tmp_path / "page.html", 1440) as page:
        page.set_default_timeout(10_000)
        chart = page.locator("#charts figure", has=page.locator("figcaption", has_text="loss")).first
        steps = [text for text in chart.locator("text").all_text_contents() if text.isdecimal()]
        assert steps[-5:] == ["0", "10", "20", "30", "40"]  # below the losses


def test_steps_at_the_end_of_the_numbers_are_drawn(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    rows = [{"step": step, "loss": 1.0} for step in (2**62, 2**62 + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "page.html").write_text(report_page([run]))
    with watched(browser, tmp_path / "page.html", 390) as page:
        page.set_default_timeout(10_000)
        assert page.locator("#charts figure").count() == 1


def test_a_page_goes_on_where_the_previews_of_a_run_are_damaged(browser: Any, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), saved(write_run(tmp_path / "b"))]
    for preview in (runs[0] / "previews").iterdir():
        preview.write_bytes(b"no picture")
    (tmp_path / "page.html").write_text(report_page(runs))
    with watched(browser, tmp_path / "page.html", 1440) as page:
        assert page.locator("#preview-pictures img").count() == 1
        assert "beit finetune" in page.text_content("#next")


def test_whole_figures_and_missing_verdicts_are_told_as_what_they_are(browser: Any, tmp_path: Path) -> None:
    run = saved(write_run(tmp_path / "a"), step=45, planned=80)
    row = {"step": 40, "held_out_mean_ap": 1.0, "held_out_micro_f1": 0.0, "held_out_images": 1200}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "config.toml").write_text('command = "finetune"\nrecipe = "tiny"\n')
    (tmp_path / "page.html").write_text(report_page([run]))
    with watched(browser, tmp_path / "page.html", 390) as page:
        assert page.locator(".figures b").all_text_contents() == ["100.0%", "0.0%", "1,200"]
        assert page.text_content("#runs h2 .soft") == "no verdict \u00b7 stopped, step 45, measured at step 40"
        assert "--resume" in page.locator("#next code").first.text_content()
