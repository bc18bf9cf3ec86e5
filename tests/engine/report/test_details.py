"""The details of a segmenter's last measuring, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beitcli.data.sources.open_data import open_data
from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.record import RunRecord
from beitcli.engine.trainer.details import segmentation_details
from tests.conftest import save_picture


def test_details_of_a_segmenter_are_pixels_of_classes_and_its_worst_images(tmp_path: Path) -> None:
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", (120, 130, 90), number, (300, 200))
    (tmp_path / "1.png").write_bytes(b"no picture")
    counts = np.array([[50, 10, 0], [20, 15, 5], [0, 0, 0]])
    each = [(0, 0.9), (1, 0.1), (2, 0.5)]
    details = segmentation_details(["sky", "tree", "cat"], counts, each, open_data([str(tmp_path)]))
    assert [Path(shown["path"]).name for shown in details["worst"]] == ["2.png", "0.png"]
    assert details["worst"][0]["picture"].startswith("data:image/jpeg;base64,")
    assert details["confusion"] == [[1, 0, 20], [0, 1, 10], [1, 2, 5]]
    run = RunRecord(tmp_path, "finetune", "done", 1, 0.0, {}, [], [], 0, "", details)
    rows = {row["class"]: row for row in class_tables(run)["rows"]}
    assert rows["sky"]["value"] == pytest.approx(50 / 80)
    assert rows["tree"]["value"] == pytest.approx(15 / 50)
    assert (rows["sky"]["share"], rows["tree"]["recall"], rows["cat"]["recall"]) == (0.6, 0.375, None)
    assert (run.measured.commonest, run.measured.labelled, run.measured.classes) == (0.6, 2, 3)
