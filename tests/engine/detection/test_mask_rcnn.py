"""Mask R-CNN end to end: outlines are learned, measured, told and drawn, and a run goes on bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.inspect_export import InspectConfig
from beitcli.config.resolve import resolve
from beitcli.data.annotations.instance_masks import decoded
from beitcli.data.transforms.detection import DetectionTransform
from beitcli.engine.detection.finetune import build_detector
from beitcli.engine.detection.task import DetectionTask, targets_of, unpacked
from beitcli.engine.finetune import finetune
from beitcli.engine.inspect import inspect
from beitcli.runtime.compute.device import Compute
from tests.helpers.coco_folder import NAMES, SHAPE
from tests.helpers.detection_runs import config_of, weights
from tests.helpers.device_waits import DeviceWaits


@pytest.fixture(scope="session")
def mask_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> tuple[Path, Any]:
    """24 steps of Mask R-CNN from scratch, and the report."""
    run = tmp_path_factory.mktemp("runs") / "masks"
    flags = {"steps": 24, "save_every": 20, "lr": 3e-3, "batch_size": 6, "min_resize": 0.9, "max_resize": 1.2}
    return run, finetune(config_of(rectangles, head="mask-rcnn", out=str(run), **flags))


@pytest.mark.slow
def test_mask_rcnn_finds_outlines_too(beit, rectangles, mask_run, tmp_path):
    run, report = mask_run
    assert report.mask_ap50 > 0.2
    (metrics,) = beit("eval", run, rectangles).lines
    assert (metrics["ap"], metrics["mask_ap"]) == (pytest.approx(report.ap), pytest.approx(report.mask_ap))
    assert inspect(InspectConfig(ref=str(run))).architecture["head"] == "mask-rcnn"
    picture = rectangles / "val" / "01.png"
    (line,) = beit("predict", run, picture, "--score-threshold", 0.1, "-o", tmp_path / "out").lines
    best = line["detections"][0]
    mask = decoded({"size": best["mask"]["size"], "counts": best["mask"]["counts"].encode()})
    assert mask.shape == SHAPE
    x0, y0, x1, y1 = best["box"]
    rows, columns = np.nonzero(mask)
    assert x0 - 2 <= columns.min() <= columns.max() <= x1 + 2
    assert y0 - 2 <= rows.min() <= rows.max() <= y1 + 2
    with Image.open(line["output"]) as drawn, Image.open(picture) as image:
        before = np.array(image.resize(drawn.size, Image.Resampling.BICUBIC))
        factor = drawn.width // image.width
        tinted = (np.array(drawn) != before).any(axis=-1)
        assert tinted[mask.repeat(factor, axis=0).repeat(factor, axis=1)].mean() > 0.9
    assert "| AP of masks |" in (run / "README.md").read_text()


def test_mask_rcnn_goes_on_bit_for_bit(mask_run, tmp_path):
    run = Path(shutil.copytree(mask_run[0], tmp_path / "run"))
    (run / "checkpoints" / "latest").write_text("step-0000020\n")
    shutil.rmtree(run / "checkpoints" / "step-0000024")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True}).config)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(mask_run[0]).items())


def test_each_image_of_a_micro_batch_has_its_own_masks():
    """The masks of a batch are one array, of as many rows as objects."""
    task = DetectionTask.__new__(DetectionTask)
    classes = torch.tensor([[1, 0, 2], [-1, -1, -1], [0, -1, -1], [2, 2, -1]])
    bits = torch.arange(6, dtype=torch.uint8)[:, None].expand(6, 2)  # objects 0 to 5, of 4 x 4 pixels
    batch = {"images": torch.zeros(4, 3, 4, 4), "boxes": torch.zeros(4, 3, 4), "classes": classes, "masks": bits}
    batch["boxes"][:, :, 0] = torch.arange(12).view(4, 3)
    batch = task.before_step(0, batch)
    assert {len(tensor) for tensor in batch.values()} == {4}
    with DeviceWaits() as waits:
        targets = [
            target
            for start, end in ((0, 1), (1, 3), (3, 4))
            for target in targets_of({name: tensor[start:end] for name, tensor in batch.items()}, task.masks)
        ]
    assert waits.names == []  # the numbers of objects of a micro-batch are read at once
    assert [target["boxes"][:, 0].tolist() for target in targets] == [[0, 1, 2], [], [6], [9, 10]]
    assert [target["labels"].tolist() for target in targets] == [[1, 0, 2], [], [0], [2, 2]]
    for target, mine in zip(targets, ([0, 1, 2], [], [3], [4, 5]), strict=True):
        assert torch.equal(target["masks"], unpacked(bits[mine], 4, 4))


def test_the_memory_of_a_batch_is_reckoned_by_the_mean_number_of_objects():
    def size(**how: Any) -> int:
        return DetectionTransform(seed=0, size=(64, 64), most=93, **how).bytes_per_image

    assert size() == 3 * 64 * 64
    assert size(outlines=True) == 3 * 64 * 64 + 93 * 512
    assert size(outlines=True, mean_boxes=7.5) == 3 * 64 * 64 + 3840


def test_alone_a_process_keeps_its_mean_of_mask_losses_as_it_is():
    task = DetectionTask.__new__(DetectionTask)
    task.compute = Compute(torch.device("cpu"), "fp32")
    task.model = build_detector(config_of("sample", head="mask-rcnn"), None, NAMES, lambda event: None)
    task.model.detection.samplers[1].positives = 7
    assert task._share_of_masks(3) == 1
    task.model.detection.samplers[1].positives = 0
    assert task._share_of_masks(3) == 0
