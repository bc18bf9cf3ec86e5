"""The paper's cells run: failures, results of other commands, the commit beside a result, data, and every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.paper_files import shards, streets, write_result

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import paper  # noqa: E402
from paper_tables.cells import Cell, Runner  # noqa: E402
from paper_tables.code_version import code_version, named  # noqa: E402
from paper_tables.prepare import lay_out  # noqa: E402


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results", tmp_path / "work", tmp_path, "cpu", lambda line: None)


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
    write_result(runner.results, "search-1", top1=0.1)
    write_result(runner.results, "search-2", top1=0.2)
    searches = tuple((rate, f"search-{rate}") for rate in "12")
    cells = [
        Cell("search-1", "search-1", 0),
        Cell("search-2", "search-2", 0),
        Cell("chosen", "chosen --lr {rate}", 0, rates=searches, script=scripts["good"]),
        Cell("child", "child", 0, needs=("chosen",), script=scripts["good"]),
    ]
    assert runner.run_all(cells, jobs=1) == []
    assert runner.stale(cells) == {}
    write_result(runner.results, "search-1", top1=0.3)  # the other rate is better now
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
    for word, name in (
        ("intermediate/seed-0/segment", "3"),
        ("beit/seed-0/iou", "figure 2"),
        ("untrained", "figure 2"),
    ):
        monkeypatch.setattr(sys, "argv", [*words, "--only", name, "--match", word])
        assert paper.main() == 0
    folder = tmp_path / "results" / "smoke"
    segmented = json.loads((folder / "intermediate" / "seed-0" / "segment.json").read_text())
    assert "--lr 7e-4" in segmented["command"] or "--lr 2e-3" in segmented["command"]
    assert 0 <= segmented["figures"]["miou"] <= 1
    trained, untrained = (
        json.loads((folder / name / "seed-0" / "iou.json").read_text())["figures"] for name in ("beit", "untrained")
    )
    assert trained["objects"] > 0
    assert trained["iou_distance"] == untrained["iou_distance"]
    assert 0 < untrained["iou"] <= 1
    assert "<!-- summary -->\n### Summary: budget `smoke`" in document.read_text()
    assert (folder / "beit" / "seed-0" / "many.json").exists()
