"""Runs that several tests of the engine share."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.engine.finetune import finetune
from tests.helpers.coco_folder import save_rectangles
from tests.helpers.detection_runs import config_of


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images to train on and 5 to measure on."""
    root = tmp_path_factory.mktemp("rectangles")
    save_rectangles(root, "train", 12, seed=0)
    save_rectangles(root, "val", 5, seed=1)
    return root


@pytest.fixture(scope="session")
def detector_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path, pretrained_run: Path) -> Path:
    """4 steps of Faster R-CNN over the pretrained run, with drop path."""
    run = tmp_path_factory.mktemp("runs") / "detector"
    finetune(config_of(rectangles, init=str(pretrained_run), drop_path=0.2, out=str(run)))
    return run
