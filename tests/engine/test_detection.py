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
from coco_folder import NAMES, SHAPE, changed, save_rectangles
from PIL import Image

from beitcli.config.resolve import resolve
from beitcli.config.training import FinetuneConfig
from beitcli.config.weights import InspectConfig
from beitcli.data.outlines import decoded
from beitcli.engine.detection import DetectionTask
from beitcli.engine.events import Event, Tabulated, Warned
from beitcli.engine.finetune import finetune
from beitcli.engine.finetune_detect import build_detector
from beitcli.engine.inspect import inspect
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.opened_detector import detector_of
from beitcli.models.references import open_backbone, open_checkpoint, open_model, open_pretrained
from beitcli.pictures.boxes import colour_of
from beitcli.runtime.checkpoint import newest_checkpoint
from beitcli.runtime.device import Compute
from beitcli.runtime.weight_files import read_tensors


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images to train on and 5 to measure on."""
    root = tmp_path_factory.mktemp("rectangles")
    save_rectangles(root, "train", 12, seed=0)
    save_rectangles(root, "val", 5, seed=1)
    return root


@pytest.fixture
def copied(rectangles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rectangles, tmp_path / "copied"))


def config_of(data: Path | str, **flags: Any) -> FinetuneConfig:
    plain = {
        "data": [str(data)], "recipe": "tiny-detect", "init": "random", "size": 32, "head_width": 16, "regions": 16,
        "steps": 4, "batch_size": 4, "save_every": 2, "log_every": 1, "warmup_steps": 1, "device": "cpu", "workers": 0,
    }  # fmt: skip
    return resolve(FinetuneConfig, plain | flags).config


@pytest.fixture(scope="session")
def detector_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path, pretrained_run: Path) -> Path:
    """4 steps of Faster R-CNN over the pretrained run, with drop path."""
    run = tmp_path_factory.mktemp("runs") / "detector"
    finetune(config_of(rectangles, init=str(pretrained_run), drop_path=0.2, out=str(run)))
    return run


@pytest.fixture(scope="session")
def learned_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> tuple[Path, Any]:
    """40 steps from scratch, and the report."""
    run = tmp_path_factory.mktemp("runs") / "learned"
    flags = {"steps": 40, "save_every": 40, "lr": 3e-3, "batch_size": 6, "min_resize": 0.9, "max_resize": 1.2}
    return run, finetune(config_of(rectangles, out=str(run), **flags))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(newest_checkpoint(run, weights_only=True).path / "model.safetensors")


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
    (figures,) = ended.lines
    assert ended.code == 0, ended.err
    assert list(figures) == [
        "model", "data", "task", "protocol", "images", "bad", "ap", "ap50", "ap75", "ap_small", "ap_medium",
        "ap_large", "mask_ap", "mask_ap50", "mask_ap75", "ap_of_class",
    ]  # fmt: skip
    assert (figures["task"], figures["images"], figures["bad"]) == ("detect", 5, 0)
    for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"):
        assert figures[name] == (None if name == "ap_large" else pytest.approx(getattr(report, name), abs=1e-6))
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
        assert drawn.shape == (*SHAPE, 3)
        if not scores:
            np.testing.assert_array_equal(drawn, before)
            continue
        best = line["detections"][0]
        x0, y0, x1, y1 = best["box"]
        assert 0 <= x0 < x1 <= SHAPE[1]
        assert 0 <= y0 < y1 <= SHAPE[0]
        assert tuple(drawn[round(y0), round(x0)]) == colour_of(NAMES.index(best["label"]))
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
    model, _ = detector_of(open_model(str(detector_run)))
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
    assert "dropped: fc_norm.bias, fc_norm.weight, head.bias, head.weight" in said
    assert "new: detection.pyramid, detection.rpn, detection.roi_heads" in said


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
    assert "dropped: detection.pyramid, detection.roi_heads, detection.rpn; new: detection.pyramid" in said


def test_detector_s_backbone_begins_a_classifier(beit, labelled_folder, detector_run, tmp_path):
    ended = beit(
        "finetune", labelled_folder, "--recipe", "tiny", "--init", detector_run, "--size", 32, "--steps", 1,
        "--batch-size", 4, "--workers", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "detection." in ended.err


def spoil(file: Path, count: int) -> None:
    def outside(document: dict[str, Any]) -> None:
        seen: set[int] = set()
        for annotation in document["annotations"]:
            if annotation["image_id"] not in seen and len(seen) < count:
                seen.add(annotation["image_id"])
                annotation["bbox"] = [40, 30, 20, 20]

    changed(file, outside)


def command_of(data: Path, run: Path) -> list[object]:
    return [
        "finetune", data, "--recipe", "tiny-detect", "--init", "random", "--size", 32, "--head-width", 8, "--regions",
        8, "--steps", 1, "--batch-size", 4, "--workers", 0, "--out", run,
    ]  # fmt: skip


def test_boxes_outside_the_image_stop_the_run_past_max_bad_and_are_left_out_below_it(beit, copied, tmp_path):
    spoil(copied / "annotations" / "instances_train.json", 3)
    run = tmp_path / "run"
    refused = beit(*command_of(copied, run))
    assert refused.code == 3, refused.err
    assert "3 of 12 images cannot be read, 1 are allowed" in refused.err
    assert "its box [40, 30, 20, 20] reaches beyond the image of 48 x 40 pixels" in refused.err
    assert not run.exists()
    allowed = beit(*command_of(copied, run), "--max-bad", 0.3)
    assert allowed.code == 0, allowed.err
    told = [json.loads(line) for line in (run / "bad-images.jsonl").read_text().splitlines()]
    assert [Path(record["path"]).stem for record in told] == ["00", "01", "02"]
    assert all("reaches beyond" in record["error"] for record in told)


def test_empty_annotations_and_damaged_ones_end_with_3_and_their_name(beit, copied, detector_run, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    changed(file, lambda document: document.update(annotations=[]))
    empty = beit(*command_of(copied, tmp_path / "run"))
    assert (empty.code, "None of the 12 training images" in empty.err) == (3, True)
    file.write_text(file.read_text()[:200])
    damaged = beit(*command_of(copied, tmp_path / "run"))
    assert (damaged.code, f"'{file}' holds no annotations" in damaged.err) == (3, True)
    assert not (tmp_path / "run").exists()
    val = copied / "annotations" / "instances_val.json"
    changed(val, lambda document: document.update(annotations=[]))
    measured = beit("eval", detector_run, copied)
    assert (measured.code, "None of the 5 images" in measured.err) == (3, True)
    changed(val, lambda document: document["categories"][0].update(name="green"))
    unknown = beit("eval", detector_run, copied)
    assert (unknown.code, "(first: 'green')" in unknown.err) == (3, True)


def test_eval_counts_what_cannot_be_used(beit, copied, detector_run):
    spoil(copied / "annotations" / "instances_val.json", 1)
    (copied / "val" / "02.png").write_bytes(b"no image")
    refused = beit("eval", detector_run, copied)
    assert (refused.code, "2 of 5 images cannot be read" in refused.err) == (3, True)
    allowed = beit("eval", detector_run, copied, "--max-bad", 0.5)
    assert (allowed.lines[0]["images"], allowed.lines[0]["bad"]) == (3, 2)


def test_image_that_turns_out_bad_while_training_is_replaced_and_named(copied, tmp_path):
    Image.new("RGB", (30, 20)).save(copied / "train" / "03.png")
    finetune(config_of(copied, steps=4, out=str(tmp_path / "run")))
    (told,) = [json.loads(line) for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert told["error"] == "it is 30 x 20 pixels, its annotations say 48 x 40"


def test_classes_and_their_boxes_are_told_and_empty_ones_warned_of(copied, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    changed(file, lambda document: document["categories"].append({"id": 1, "name": "green"}))
    events: list[Event] = []
    finetune(config_of(copied, out=str(tmp_path / "run"), steps=1), events.append)
    (table,) = [event for event in events if isinstance(event, Tabulated)]
    boxes = json.loads(file.read_text())["annotations"]
    assert [row[0] for row in table.rows] == ["green", "blue", "red"]
    assert [row[1] for row in table.rows] == [0, *(sum(b["category_id"] == c for b in boxes) for c in (3, 7))]
    assert any("1 of 3 classes have no box" in event.message for event in events if isinstance(event, Warned))


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
        assert "pip install 'beit-cli[detect]'" in ended.err
    assert beit("predict", detector_run, rectangles / "val" / "00.png").code == 0  # measures nothing


@pytest.mark.parametrize("value", [None, 0, "16", True, 10**9])
def test_settings_that_no_detector_has_are_refused(detector_run, tmp_path, value):
    opened = open_checkpoint(str(detector_run))
    opened.settings["head_width"] = value
    with pytest.raises(StorageError, match="for head_width"):
        detector_of(opened)


def test_task_detect_has_a_recipe_of_its_own(rectangles):
    flags = {"data": [str(rectangles)], "init": "random", "task": "detect"}
    assert resolve(FinetuneConfig, flags).config.recipe == "base-coco"
    assert resolve(FinetuneConfig, flags | {"recipe": "tiny-detect"}).config.head == "faster-rcnn"


def test_without_a_validation_split_some_images_are_held_out(tmp_path):
    file = save_rectangles(tmp_path, "train", 20, seed=0)
    data = tmp_path / "data"
    (tmp_path / "train").rename(tmp_path / "images")
    data.mkdir()
    (tmp_path / "images").rename(data / "images")
    file.rename(data / "annotations.json")
    report = finetune(config_of(data, steps=1, out=str(tmp_path / "run")))
    assert (report.measured_on, report.images) == ("1 held-out images", 1)


def test_sample_has_boxes(beit, tmp_path):
    run = tmp_path / "run"
    ended = beit(
        "finetune", "sample", "--init", "random", "--recipe", "tiny-detect", "--limit", 40, "--steps", 2,
        "--batch-size", 8, "--size", 32, "--head-width", 16, "--regions", 16, "--workers", 0, "--split", "val",
        "--out", run, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (ended.lines[0]["task"], ended.lines[0]["classes"]) == ("detect", 10)
    assert ended.lines[0]["measured_on"] == "2 held-out images"
    assert beit("predict", run, "sample", "--limit", 2).code == 0


def test_no_box_at_all_is_refused_by_its_own_words(copied):
    changed(copied / "annotations" / "instances_train.json", lambda d: [a.update(iscrowd=1) for a in d["annotations"]])
    with pytest.raises(DataError, match=r"has a box") as error:
        finetune(config_of(copied))
    assert "crowds" in error.value.hint


def test_dry_run_tells_the_plan_and_trains_nothing(beit, rectangles, tmp_path):
    ended = beit(*command_of(rectangles, tmp_path / "run"), "--dry-run")
    (plan,) = ended.lines
    assert (ended.code, plan["dry_run"]) == (0, True)
    assert plan["plan"]["head"].startswith("faster-rcnn, ")
    assert plan["plan"]["head"].endswith("at strides 2, 4, 8, 16, 32")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def mask_run(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> tuple[Path, Any]:
    """24 steps of Mask R-CNN from scratch, and the report."""
    run = tmp_path_factory.mktemp("runs") / "masks"
    flags = {"steps": 24, "save_every": 20, "lr": 3e-3, "batch_size": 6, "min_resize": 0.9, "max_resize": 1.2}
    return run, finetune(config_of(rectangles, head="mask-rcnn", out=str(run), **flags))


def test_mask_rcnn_finds_outlines_too(beit, rectangles, mask_run, tmp_path):
    run, report = mask_run
    assert report.mask_ap50 > 0.2
    (figures,) = beit("eval", run, rectangles).lines
    assert (figures["ap"], figures["mask_ap"]) == (pytest.approx(report.ap), pytest.approx(report.mask_ap))
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
        assert (np.array(drawn) != np.array(image)).any(axis=-1)[mask].mean() > 0.95
    assert "| AP of masks |" in (run / "README.md").read_text()


def test_mask_rcnn_goes_on_bit_for_bit(mask_run, tmp_path):
    run = Path(shutil.copytree(mask_run[0], tmp_path / "run"))
    (run / "checkpoints" / "latest").write_text("step-0000020\n")
    shutil.rmtree(run / "checkpoints" / "step-0000024")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True}).config)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(mask_run[0]).items())


def test_annotations_without_outlines_are_of_no_use_to_mask_rcnn(beit, copied, tmp_path):
    file = copied / "annotations" / "instances_train.json"
    changed(file, lambda document: [each.pop("segmentation") for each in document["annotations"]])
    ended = beit(*command_of(copied, tmp_path / "run"), "--head", "mask-rcnn")
    assert (ended.code, "it has no segmentation" in ended.err) == (3, True)
    assert beit(*command_of(copied, tmp_path / "run")).code == 0


def test_several_models_are_compared_in_one_table(beit, rectangles, detector_run, learned_run):
    ended = beit("eval", detector_run, learned_run[0], rectangles)
    assert ended.code == 0, ended.err
    (figures,) = ended.lines
    assert [each["images"] for each in figures] == [5, 5]


def test_alone_a_process_keeps_its_mean_of_mask_losses_as_it_is():
    task = DetectionTask.__new__(DetectionTask)
    task.compute = Compute(torch.device("cpu"), "fp32")
    task.model = build_detector(config_of("sample", head="mask-rcnn"), None, NAMES, lambda event: None)
    task.model.detection.samplers[1].positives = 7
    assert task._share_of_masks(3) == 1
    task.model.detection.samplers[1].positives = 0
    assert task._share_of_masks(3) == 0
