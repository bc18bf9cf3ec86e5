"""Detectors in several processes: the same losses, weights and metrics, uneven shares and images without boxes too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beitcli.engine.detection import inference as detect_images
from tests.helpers.coco_folder import changed, save_rectangles
from tests.helpers.detection_runs import weights
from tests.helpers.processes import in_processes

pytestmark = pytest.mark.slow

COMPARED = ("loss", "loss_objectness", "loss_classifier", "loss_box_reg", "gradient_norm")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images to train on, half of them without a box, and 5 to measure on."""
    root = tmp_path_factory.mktemp("sparse")
    file = save_rectangles(root, "train", 12, seed=0)
    save_rectangles(root, "val", 5, seed=1)
    changed(file, lambda d: d.update(annotations=[a for a in d["annotations"] if a["image_id"] % 2]))
    return root


def training(data: Path, out: Path, head: str) -> list[object]:
    return [
        "finetune", data, "--recipe", "tiny-detect", "--init", "random", "--head", head, "--size", 32,
        "--head-width", 8, "--regions", 8, "--drop-path", 0.2, "--steps", 3, "--batch-size", 5,
        "--save-every", 3, "--log-every", 1, "--workers", 0, "--device", "cpu", "--quiet", "--out", out,
    ]  # fmt: skip


def only_the_first_evaluates(rank: int) -> None:
    if rank:
        del detect_images.average_precision


def run_in(size: int, words: list[object], before: Callable[[int], None] = lambda rank: None) -> str:
    first, *others = in_processes(size, words, before=before)
    assert first.code == 0, first.err
    assert [(each.code, each.out) for each in others] == [(0, "")] * len(others)
    return first.out


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("head", ["faster-rcnn", "mask-rcnn"])
def test_detector_is_finetuned_and_measured_alike_by_any_number(sparse, tmp_path, head):
    sizes = (1, 2, 3) if head == "faster-rcnn" else (1, 2)
    for size in sizes:
        run_in(size, training(sparse, tmp_path / str(size), head))
    whole, lines = weights(tmp_path / "1"), lines_of(tmp_path / "1")
    for size in sizes[1:]:
        run = tmp_path / str(size)
        for one, other in zip(lines, lines_of(run), strict=True):
            for name in (*COMPARED, *(["loss_mask"] if head == "mask-rcnn" else [])):
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (size, name)
        for name, tensor in weights(run).items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=2e-4)
    words = ["eval", tmp_path / "1", sparse, "--device", "cpu", "--workers", 0, "--batch-size", 2, "--json"]
    alone = run_in(1, words)
    assert run_in(2, words, before=only_the_first_evaluates) == alone
    assert json.loads(alone)["images"] == 5
