"""Detection end to end: it learns, goes on bit for bit, is measured alike, and refuses annotations that do not fit."""

from __future__ import annotations

import builtins
import json
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
from beitcli.engine.detection.finetune import build_detector
from beitcli.engine.finetune import finetune
from beitcli.engine.inspect import inspect
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.build import load_detector, open_backbone
from beitcli.models.checkpoints.open import open_checkpoint, open_model, open_pretrained
from beitcli.pictures.boxes import colour_of, enlargement
from tests.helpers.coco_folder import NAMES, SHAPE
from tests.helpers.detection_runs import command_of, config_of, weights


@pytest.fixture(scope="session")
def learned_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> tuple[Path, Any]:
    """40 steps from scratch, and the report."""
    run = tmp_path_factory.mktemp("runs") / "learned"
    flags = {"steps": 40, "save_every": 40, "lr": 3e-3, "batch_size": 6, "min_resize": 0.9, "max_resize": 1.2}
    return run, finetune(config_of(rectangles, out=str(run), **flags))


@pytest.mark.slow
def test_detector_learns_what_a_few_images_show(rectangles, learned_run):
    run, report = learned_run
    assert (report.task, report.classes, report.images, report.step) == ("detect", 2, 5, 40)
    assert report.measured_on.endswith("split val")
    assert report.ap50 > 0.3
    assert report.ap == pytest.approx(np.mean([report.ap_of_class[name] for name in NAMES]))
    assert report.ap_large is None
    card = (run / "README.md").read_text()
    assert f"| AP (5 images: {rectangles}, split val) | {report.ap:.4f} |" in card
    assert "| AP, red |" in card


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(detector_run, tmp_path):
    run = Path(shutil.copytree(detector_run, tmp_path / "run"))
    (run / "checkpoints" / "latest").write_text("step-0000002\n")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True, "workers": 2}).config)
    whole, resumed = weights(detector_run), weights(run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "detection.pyramid.levels.0.1.weight" in whole


def test_step_is_the_same_in_one_piece_and_in_several(rectangles, tmp_path):
    for name, micro in (("whole", 4), ("pieces", 1)):
        out = str(tmp_path / name)
        finetune(config_of(rectangles, steps=2, micro_batch=micro, drop_path=0.2, precision="fp32", out=out))
    whole, pieces = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-3, atol=2e-4)
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("whole", "pieces")
    ]
    for figure in ("loss", "loss_objectness", "loss_classifier", "loss_box_reg", "gradient_norm"):
        assert lines[0][figure] == pytest.approx(lines[1][figure], rel=1e-4), figure


def test_moving_average_is_what_is_saved_and_goes_on_bit_for_bit(rectangles, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finetune(config_of(rectangles, ema=0.9, out=str(whole)))
    shutil.copytree(whole, run)
    (run / "checkpoints" / "latest").write_text("step-0000002\n")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True}).config)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(whole).items())


def test_eval_gives_the_run_s_own_figures(beit, rectangles, learned_run):
    run, report = learned_run
    ended = beit("eval", run, rectangles, "--json", "--batch-size", 2)
    (metrics,) = ended.lines
    assert ended.code == 0, ended.err
    assert list(metrics) == [
        "model", "data", "task", "protocol", "images", "bad", "ap", "ap50", "ap75", "ap_small", "ap_medium",
        "ap_large", "mask_ap", "mask_ap50", "mask_ap75", "ap_of_class",
    ]  # fmt: skip
    assert (metrics["task"], metrics["images"], metrics["bad"]) == ("detect", 5, 0)
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
        assert metrics[name] == (None if name == "ap_large" else pytest.approx(getattr(report, name), abs=1e-6))
    own = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert own["held_out_ap"] == report.ap
    assert own["held_out_ap/red"] == report.ap_of_class["red"]
    some = beit("eval", run, rectangles, "--limit", 2, "--size", 48)
    assert (some.code, some.lines[0]["images"]) == (0, 2)
    assert "fitted to another size" in some.err


def test_predict_tells_objects_in_pixels_of_the_image_and_draws_them(beit, rectangles, learned_run, tmp_path):
    inputs = sorted((rectangles / "val").glob("*.png"))
    command = ["predict", learned_run[0], *inputs, "--score-threshold", 0.1]
    ended = beit(*command, "-o", tmp_path / "boxes")
    assert ended.code == 0, ended.err
    assert [line["path"] for line in ended.lines] == list(map(str, inputs))
    assert sum(len(line["detections"]) for line in ended.lines) > 3
    for line in ended.lines:
        scores = [each["score"] for each in line["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert min(scores, default=1) >= 0.1
        with Image.open(line["output"]) as picture, Image.open(line["path"]) as image:
            drawn, before = np.array(picture), np.array(image)
        factor = enlargement(*SHAPE)
        assert drawn.shape == (SHAPE[0] * factor, SHAPE[1] * factor, 3)
        assert before.shape == (*SHAPE, 3)
        if not scores:
            continue
        best = line["detections"][0]
        x0, y0, x1, y1 = best["box"]
        assert 0 <= x0 < x1 <= SHAPE[1]
        assert 0 <= y0 < y1 <= SHAPE[0]
        top, left, bottom = round(y0 * factor), round(x0 * factor), round(y1 * factor) - 1
        corners = [tuple(drawn[top, left]), tuple(drawn[bottom, left])]  # a name may lie on one of them
        assert colour_of(NAMES.index(best["label"])) in corners
    plain = beit(*command)
    assert all("output" not in line for line in plain.lines)
    assert [line["detections"] for line in plain.lines] == [line["detections"] for line in ended.lines]
    assert beit("predict", learned_run[0], *inputs, "--score-threshold", 1).lines[0]["detections"] == []


def test_predict_names_bad_images_and_refuses_to_overwrite(beit, rectangles, detector_run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = rectangles / "val" / "00.png"
    ended = beit("predict", detector_run, tmp_path / "bad.png", good, "-o", tmp_path / "out")
    assert ended.code == 3
    assert ("error" in ended.lines[0], "output" in ended.lines[1]) == (True, True)
    refused = beit("predict", detector_run, good, "-o", good.parent)
    assert (refused.code, "would overwrite the image" in refused.err) == (2, True)
    wrong = beit("predict", detector_run, good, "--score-threshold", 1.5)
    assert (wrong.code, "--score-threshold is 1.5" in wrong.err) == (2, True)


def test_inspect_and_the_other_openers_know_a_detector(beit, rectangles, detector_run, tmp_path):
    report = inspect(InspectConfig(ref=str(detector_run)))
    model, _ = load_detector(open_model(str(detector_run)))
    assert (report.kind, report.classes, tuple(report.class_names)) == ("detector", 2, NAMES)
    assert report.architecture["head"] == "faster-rcnn"
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.dropped == []
    assert not model.training
    backbone, _ = open_backbone(str(detector_run))
    assert torch.equal(backbone.cls_token, model.cls_token)
    picture = rectangles / "val" / "00.png"
    ended = beit("attn-map", picture, "--model", detector_run, "-o", tmp_path / "map.png")
    assert ended.code == 0, ended.err
    refused = beit("export", detector_run, "--to", "timm", "-o", tmp_path / "export")
    assert (refused.code, "is a detector, which has no export" in refused.err) == (2, True)


def build(init: Path, classes: tuple[str, ...], **flags: Any) -> tuple[Any, str]:
    said: list[str] = []
    config = config_of("sample", init=str(init), **flags)
    model = build_detector(config, open_pretrained(str(init)), classes, lambda event: said.append(str(event)))
    return model, " ".join(said)


def test_finetuned_classifier_gives_its_backbone_under_a_new_head(finetuned_run):
    model, said = build(finetuned_run, NAMES)
    theirs = weights(finetuned_run)
    for name, tensor in model.state_dict().items():
        if name in theirs:
            assert torch.equal(tensor, theirs[name]), name
    assert "what followed its blocks is dropped (4 tensors)" in said
    assert "the detector's head is new (46 tensors)" in said


@pytest.mark.parametrize(("classes", "flags"), [(("green", "red"), {}), (NAMES, {"head_width": 8})])
def test_detector_keeps_its_head_for_the_same_shape_and_classes_only(detector_run, classes, flags):
    theirs = weights(detector_run)
    same, _ = build(detector_run, NAMES, regions=8)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in same.state_dict().items())
    other, said = build(detector_run, classes, **flags)
    assert torch.equal(other.cls_token, theirs["cls_token"])
    scores = other.detection.roi_heads.box_predictor.cls_score.weight
    kept = theirs["detection.roi_heads.box_predictor.cls_score.weight"]
    assert scores.shape != kept.shape or not torch.equal(scores, kept)
    assert "what followed its blocks is dropped (46 tensors); the detector's head is new (46 tensors)" in said


def test_detector_s_backbone_begins_a_classifier(beit, labelled_folder, detector_run, tmp_path):
    ended = beit(
        "finetune", labelled_folder, "--recipe", "tiny", "--init", detector_run, "--size", 32, "--steps", 1,
        "--batch-size", 4, "--workers", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "what followed its blocks is dropped (46 tensors)" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"head": "upernet"}, "--head upernet is no head of --task detect"),
        ({"size": 24}, "make 3 x 3 patches"),
        ({"head_width": 0}, "--head-width is 0"),
        ({"max_resize": 0.2}, "--max-resize is 0.2"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(rectangles, tmp_path, flags, said):
    with pytest.raises(UsageError, match=said):
        finetune(config_of(rectangles, out=str(tmp_path / "run"), **flags))
    assert not (tmp_path / "run").exists()


def test_without_pycocotools_it_is_said_how_to_install_it(beit, rectangles, detector_run, tmp_path, monkeypatch):
    found = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    for ended in (beit(*command_of(rectangles, tmp_path / "run")), beit("eval", detector_run, rectangles)):
        assert ended.code == 2
        assert "pip install 'pycocotools>=2.0.8'" in ended.err
    assert beit("predict", detector_run, rectangles / "val" / "00.png").code == 0  # measures nothing


@pytest.mark.parametrize("value", [None, 0, "16", True, 10**9])
def test_settings_that_no_detector_has_are_refused(detector_run, tmp_path, value):
    checkpoint = open_checkpoint(str(detector_run))
    checkpoint.settings["head_width"] = value
    with pytest.raises(StorageError, match="for head_width"):
        load_detector(checkpoint)


def test_task_detect_has_a_recipe_of_its_own(rectangles):
    flags = {"data": [str(rectangles)], "init": "random", "task": "detect"}
    assert resolve(FinetuneConfig, flags).config.recipe == "base-coco"
    assert resolve(FinetuneConfig, flags | {"recipe": "tiny-detect"}).config.head == "faster-rcnn"


def test_sample_has_boxes(beit, tmp_path):
    run = tmp_path / "run"
    ended = beit(
        "finetune", "sample", "--init", "random", "--recipe", "tiny-detect", "--limit", 40, "--steps", 2,
        "--batch-size", 8, "--size", 32, "--head-width", 16, "--regions", 16, "--workers", 0, "--split", "val",
        "--out", run, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (ended.lines[0]["task"], ended.lines[0]["classes"]) == ("detect", 10)
    assert ended.lines[0]["measured_on"] == "8 held-out images"
    assert beit("predict", run, "sample", "--limit", 2).code == 0


def test_dry_run_tells_the_plan_and_trains_nothing(beit, rectangles, tmp_path):
    ended = beit(*command_of(rectangles, tmp_path / "run"), "--dry-run")
    (plan,) = ended.lines
    assert (ended.code, plan["dry_run"]) == (0, True)
    assert plan["plan"]["head"].startswith("faster-rcnn, ")
    assert plan["plan"]["head"].endswith("at strides 2, 4, 8, 16, 32")
    assert not (tmp_path / "run").exists()


def test_several_models_are_compared_in_one_table(beit, rectangles, detector_run, learned_run):
    ended = beit("eval", detector_run, learned_run[0], rectangles)
    assert ended.code == 0, ended.err
    (metrics,) = ended.lines
    assert [each["images"] for each in metrics] == [5, 5]
