"""Multi-label classification: tables of 0/1 columns, metrics, finetuning, evaluation, prediction and export."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from beitcli.data.sources.label_columns import require_binary
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.classification.label_vectors import average_precision, label_metrics
from beitcli.errors import DataError
from tests.helpers.foreign_models import hf_classifier


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """40 images in which red, green and blue are each present or not, with a column for each."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = [["path", "red", "green", "blue"]]
    for number in range(40):
        present = rng.integers(0, 2, 3)
        pixels = rng.integers(0, 40, (32, 32, 3), dtype=np.uint8) + (present * 200).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append([f"{number}.png", *map(str, present)])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


def written(folder: Path, text: str) -> str:
    (folder / "t.csv").write_text(text)
    return str(folder / "t.csv")


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 4)).round(1).astype(np.float32)  # with ties
    targets = (rng.random((50, 4)) < 0.3).astype(np.float32)
    targets[:, 2] = 0
    found = label_metrics(logits, targets)
    scored = [average_precision_score(targets[:, label], logits[:, label]) for label in (0, 1, 3)]
    assert found["mean_ap"] == pytest.approx(np.mean(scored))
    assert found["micro_f1"] == pytest.approx(f1_score(targets, logits >= 0, average="micro", zero_division=0))
    assert average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])) == pytest.approx(5 / 6)
    assert label_metrics(logits, targets * 0) == {"mean_ap": 0.0, "micro_f1": 0.0}


def test_a_table_gives_paths_beside_it_and_a_vector_an_image(table):
    source = open_data([str(table)])
    assert (len(source), source.classes, source.label_names) == (40, None, ("red", "green", "blue"))
    rows = list(csv.reader(table.read_text().splitlines()))
    assert source.label_vector(3).tolist() == [float(cell) for cell in rows[4][1:]]
    assert source.image(3).size == (32, 32)
    assert source.fingerprint() != open_data([str(table)]).fingerprint()[::-1]


def test_the_fingerprint_of_a_table_tells_other_labels(tmp_path):
    first = open_data([written(tmp_path, "path,a\nx.png,0\ny.png,1\n")]).fingerprint()
    assert open_data([written(tmp_path, "path,a\nx.png,1\ny.png,1\n")]).fingerprint() != first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column path"),
        ("a,b\n1,2\n", "no column path"),
        ("path,a\nx.png\n", "1 cells"),
        ("path,a,a\nx.png,1,1\n", "two columns 'a'"),
        ("path,a\nx.png,1\ny.png,maybe\n", "'maybe' for a"),
        ("path,a\nx.png,\ny.png,1\n", "'' for a"),
        ("path,a\n", "lists no images"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_value(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        open_data([written(tmp_path, text)])


def test_a_spreadsheets_table_is_read(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbfimage,note,cat\r\n"a, b.png","he said ""x""",1\r\n\r\nc.png,,0.0\r\n'
    )
    said: list[str] = []
    source = open_data([str(tmp_path / "t.csv")], on_progress=lambda what, *_: said.append(what))
    assert source.label_names == ("cat",)
    assert [source.path(index) for index in range(2)] == ["a, b.png", "c.png"]
    assert any("note" in each for each in said)


def test_finetuning_on_a_table_learns_and_is_evaluated_predicted_and_exported(beit, tmp_path, table):
    hf_classifier(tmp_path / "init")
    flags = ("--recipe", "tiny", "--steps", 30, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--json")
    out = ("--init", tmp_path / "init", "--problem", "multi-label", "--val", table, "--out", tmp_path / "run")
    ended = beit("finetune", table, *out, "--lr", 3e-3, *flags)
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["classes"] == 3
    assert report["mean_ap"] > 0.8
    assert "mAP" in (tmp_path / "run" / "README.md").read_text()
    measured = json.loads(beit("eval", tmp_path / "run", table, "--json", "--device", "cpu").out)
    assert measured["mean_ap"] == pytest.approx(report["mean_ap"])
    assert measured["micro_f1"] == pytest.approx(report["micro_f1"])
    assert beit("export", tmp_path / "run", "--to", "hf", "-o", tmp_path / "hf").code == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").problem_type == "multi_label_classification"
    assert "type: map" in (tmp_path / "hf" / "README.md").read_text()
    again = json.loads(beit("eval", tmp_path / "hf", table, "--json", "--device", "cpu").out)
    assert again["mean_ap"] == pytest.approx(report["mean_ap"], abs=0.02)
    document = beit("predict", tmp_path / "run", table.parent / "0.png", "--json", "--score-threshold", 0).lines[0]
    assert {name for name, _ in document["labels"]} == {"red", "green", "blue"}


def test_parquet_with_columns_of_numbers_is_such_a_table(beit, tmp_path, table):
    rows = list(csv.DictReader(table.read_text().splitlines()))
    images = [{"bytes": (table.parent / row["path"]).read_bytes(), "path": None} for row in rows]
    columns = {"image": images, "note": ["x"] * len(rows), "red": [row["red"] == "1" for row in rows]}
    columns |= {"green": [int(row["green"]) for row in rows], "blue": [float(row["blue"]) for row in rows]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=16)
    source = open_data([str(tmp_path / "t.parquet")], vectors=True)
    whole = open_data([str(table)])
    assert source.label_names == ("red", "green", "blue")
    assert all(np.array_equal(source.label_vector(i), whole.label_vector(i)) for i in range(40))
    assert open_data([str(tmp_path / "t.parquet")]).label_names is None
    hf_classifier(tmp_path / "m", problem_type="multi_label_classification",
                  id2label={0: "blue", 1: "red", 2: "green"})  # fmt: skip
    measured = [json.loads(beit("eval", tmp_path / "m", data, "--json", "--device", "cpu").out)["mean_ap"]
                for data in (table, tmp_path / "t.parquet")]  # fmt: skip
    assert measured[0] == pytest.approx(measured[1])
    pq.write_table(pa.table(columns | {"red": [None, *columns["red"][1:]]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match=r"Row 0 of .* has no number for red"):
        open_data([str(tmp_path / "null.parquet")], vectors=True)


def test_multi_label_finetuning_refuses_other_data_with_a_way_out(beit, tmp_path, labelled_folder):
    flags = ("--init", "random", "--problem", "multi-label", "--recipe", "tiny", "--steps", 1, "--device", "cpu")
    ended = beit("finetune", labelled_folder, *flags, "--out", tmp_path / "a")
    assert (ended.code, ".csv" in ended.err) == (3, True)
    numbers = written(tmp_path, "path,a\nx.png,0\ny.png,0.5\n")
    (tmp_path / "x.png").touch()
    ended = beit("finetune", numbers, *flags, "--out", tmp_path / "b")
    assert ended.code == 3
    assert "0.5 for a" in ended.err
    ended = beit("finetune", numbers, "--init", "random", "--recipe", "tiny", "--steps", 1, "--out", tmp_path / "c")
    assert ended.code == 3
    assert "--problem multi-label" in ended.err


def test_a_regression_is_measured_by_its_errors(beit, tmp_path, table):
    hf_classifier(tmp_path / "model", problem_type="regression", id2label={0: "green"}, num_labels=1)
    report = json.loads(beit("eval", tmp_path / "model", table, "--json", "--device", "cpu").out)
    assert report["root_mean_square_error"] >= report["mean_absolute_error"] > 0
    (tmp_path / "x.png").touch()
    ended = beit("eval", tmp_path / "model", written(tmp_path, "path,age\nx.png,3\n"), "--device", "cpu")
    assert (ended.code, "lacks 1 of the model's 1 labels" in ended.err) == (3, True)


def test_the_vectors_of_all_images_are_those_of_each(tmp_path):
    for name, rows in (("a", "1.png,0,1\n2.png,1,1\n"), ("b", "3.png,1,0\n4.png,0,0.5\n")):
        (tmp_path / f"{name}.csv").write_text(f"path,x,y\n{rows}")
    tables = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    both = open_data(tables, vectors=True)
    part = Subset(both, np.array([3, 1]))
    for source in (both, part):
        each = [source.label_vector(index).tolist() for index in range(len(source))]
        assert source.label_vectors().tolist() == each
    require_binary(Subset(both, np.array([0, 1, 2])))
    with pytest.raises(DataError, match=r"4\.png' has 0\.5 for y; labels are 0 or 1"):
        require_binary(part)
