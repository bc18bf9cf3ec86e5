"""Segmentation end to end: it learns, goes on bit for bit, is measured alike, and refuses masks that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.inspect_export import InspectConfig
from beitcli.config.resolve import resolve
from beitcli.engine.events import Event, Note, Tabulated
from beitcli.engine.finetune import finetune
from beitcli.engine.inspect import inspect
from beitcli.engine.segmentation.dataset import read_names
from beitcli.engine.segmentation.finetune import build_segmenter
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.checkpoints.build import load_segmenter, open_backbone
from beitcli.models.checkpoints.open import open_model, open_pretrained, open_unverified
from beitcli.pictures.palette import class_colours
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.weight_files.reader import read_tensors
from tests.helpers.foreign_models import hf_segmenter
from tests.helpers.processes import in_processes
from tests.helpers.scenes import IGNORE, NAMES, save_scene


@pytest.fixture
def copied(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "copied"))


def config_of(data: Path, **flags: Any) -> FinetuneConfig:
    plain = {
        "data": [str(data)], "recipe": "tiny-segment", "init": "random", "size": 32, "ignore_index": IGNORE,
        "steps": 4, "batch_size": 4, "save_every": 2, "log_every": 1, "warmup_steps": 1, "device": "cpu", "workers": 0,
        "classes": str(data / "names.txt"),
    }  # fmt: skip
    return resolve(FinetuneConfig, plain | flags).config


@pytest.fixture(scope="session")
def segmenter_run(tmp_path_factory: pytest.TempPathFactory, scenes: Path, pretrained_run: Path) -> Path:
    """4 steps of UPerNet over the pretrained run."""
    run = tmp_path_factory.mktemp("runs") / "segmenter"
    finetune(config_of(scenes, init=str(pretrained_run), out=str(run)))
    return run


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--top", 3], "--top has no effect"),
        (["--score-threshold", 0.1], "--score-threshold has no effect"),
        (["--window", 16, "--size", 32], "--size is given beside it"),
    ],
    ids=str,
)
def test_predict_refuses_what_a_segmenter_does_not_use(
    beit: Callable, segmenter_run: Path, scenes: Path, tmp_path: Path, argv: list[object], named: str
) -> None:
    ended = beit("predict", segmenter_run, scenes, "-o", tmp_path / "masks", *argv)
    assert ended.code == 2
    assert named in ended.err
    assert not (tmp_path / "masks").exists()


def pixels_of(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(newest_checkpoint(run, weights_only=True).path / "model.safetensors")


@pytest.mark.slow
def test_segmenter_learns_what_a_few_scenes_show(scenes, tmp_path):
    flags = {"steps": 25, "save_every": 25, "lr": 3e-3, "head": "setr-pup", "precision": "fp32"}
    report = finetune(config_of(scenes, out=str(tmp_path / "run"), **flags))
    assert (report.task, report.classes, report.images, report.step) == ("segment", 3, 4, 25)
    assert report.measured_on.endswith("split val")
    assert report.miou > 0.8
    assert report.miou == pytest.approx(np.mean(list(report.iou.values())))
    assert tuple(report.iou) == NAMES
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| mIoU (4 images: {scenes}, split val) | {report.miou:.4f} |" in card
    assert "| IoU, top |" in card


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(scenes, segmenter_run, tmp_path):
    run = Path(shutil.copytree(segmenter_run, tmp_path / "run"))
    (run / "checkpoints" / "latest").write_text("step-0000002\n")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True, "workers": 2}).config)
    whole, resumed = weights(segmenter_run), weights(run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "decode_head.fpn1.1.running_var" in whole


@pytest.mark.slow
def test_moving_average_is_what_is_saved_and_goes_on_bit_for_bit(scenes, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finetune(config_of(scenes, ema=0.9, out=str(whole)))
    shutil.copytree(whole, run)
    (run / "checkpoints" / "latest").write_text("step-0000002\n")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True}).config)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(whole).items())
    trained = newest_checkpoint(whole).trainer_tensors()
    assert not torch.equal(trained["task/raw/cls_token"], weights(whole)["cls_token"])


def test_eval_gives_the_run_s_own_figures(beit, scenes, segmenter_run):
    own = json.loads((segmenter_run / "metrics.jsonl").read_text().splitlines()[-1])
    ended = beit("eval", segmenter_run, scenes, "--json")
    (metrics,) = ended.lines
    assert list(metrics) == [
        "model", "data", "task", "protocol", "images", "bad", "miou", "pixel_accuracy", "mean_accuracy", "iou"
    ]  # fmt: skip
    assert (ended.code, metrics["task"], metrics["images"], metrics["bad"]) == (0, "segment", 4, 0)
    assert metrics["miou"] == own["held_out_miou"]
    assert metrics["pixel_accuracy"] == own["held_out_pixel_accuracy"]
    assert tuple(metrics["iou"]) == NAMES
    other = beit("eval", segmenter_run, scenes, "--multi-scale", "--flip", "--window", 48, "--stride", 16)
    assert other.code == 0
    assert other.lines[0]["pixel_accuracy"] != metrics["pixel_accuracy"]
    assert "fitted to another size" in other.err


def test_predict_writes_masks_and_overlays_and_tells_the_shares(beit, scenes, segmenter_run, tmp_path):
    inputs = sorted((scenes / "val" / "images").glob("*.png"))
    ended = beit("predict", segmenter_run, *inputs, "-o", tmp_path / "masks", "--overlay")
    assert ended.code == 0, ended.err
    assert [line["path"] for line in ended.lines] == list(map(str, inputs))
    for line in ended.lines:
        with Image.open(line["output"]) as mask:
            assert (mask.mode, mask.size) == ("P", (52, 40))
            assert mask.getpalette()[3:9] == class_colours()[1:3].ravel().tolist()
            values = np.asarray(mask)
        for name, share in line["classes"].items():
            assert share == (values == NAMES.index(name)).mean()
        assert sum(line["classes"].values()) == pytest.approx(1)
        drawn = pixels_of(line["overlay"])  # 13 times as large, with a legend below
        assert drawn.shape[1] == 13 * 52
        assert drawn.shape[0] > 13 * 40
    # its own masks as DATA: every figure is 1
    shutil.copytree(scenes / "val" / "images", tmp_path / "own" / "images")
    shutil.move(tmp_path / "masks", tmp_path / "own" / "masks")
    again = beit("eval", segmenter_run, tmp_path / "own")
    assert (again.lines[0]["miou"], again.lines[0]["pixel_accuracy"]) == (1.0, 1.0)


def test_predict_names_bad_images_and_refuses_to_overwrite(beit, scenes, segmenter_run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = scenes / "val" / "images" / "10.png"
    ended = beit("predict", segmenter_run, tmp_path / "bad.png", good, "-o", tmp_path / "out")
    assert ended.code == 3
    assert ("error" in ended.lines[0], "output" in ended.lines[1]) == (True, True)
    refused = beit("predict", segmenter_run, good, "-o", good.parent)
    assert (refused.code, "would overwrite the image" in refused.err) == (2, True)
    silent = beit("predict", segmenter_run, good)
    assert (silent.code, "-o DIR" in silent.err) == (2, True)


def test_masks_of_reduced_labels_are_written_in_the_numbering_of_the_training_masks(beit, copied, tmp_path):
    for path in copied.glob("*/masks/*.png"):
        mask = pixels_of(path)
        Image.fromarray(np.where(mask == IGNORE, 0, mask + 1).astype(np.uint8)).save(path)
    flags = {"reduce_zero_label": True, "ignore_index": 255, "out": str(tmp_path / "run")}
    report = finetune(config_of(copied, **flags))
    assert report.classes == 3
    ended = beit("predict", tmp_path / "run", copied / "val" / "images" / "10.png", "-o", tmp_path / "masks")
    assert set(np.unique(pixels_of(ended.lines[0]["output"]))) <= {1, 2, 3}
    assert beit("eval", tmp_path / "run", copied).lines[0]["miou"] == report.miou


def test_inspect_and_the_other_openers_know_a_segmenter(segmenter_run):
    report = inspect(InspectConfig(ref=str(segmenter_run)))
    model, _ = load_segmenter(open_model(str(segmenter_run)))
    assert (report.kind, report.classes, tuple(report.class_names)) == ("segmenter", 3, NAMES)
    assert report.architecture["head"] == "upernet"
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert report.dropped == []
    backbone, _ = open_backbone(str(segmenter_run))  # for attn-map
    assert torch.equal(backbone.cls_token, model.cls_token)
    assert not model.training


def test_history_of_classes_and_their_names_are_told(scenes, tmp_path):
    events: list[Event] = []
    finetune(config_of(scenes, classes=None, out=str(tmp_path / "run"), steps=1), events.append)
    (histogram,) = [event for event in events if isinstance(event, Tabulated)]
    masks = [pixels_of(path) for path in (scenes / "train" / "masks").glob("*.png")]
    labelled = sum((mask != IGNORE).sum() for mask in masks)
    assert [row[0] for row in histogram.rows] == ["class-00", "class-01", "class-02"]
    for label, (_, share, images) in enumerate(histogram.rows):
        assert share == sum((mask == label).sum() for mask in masks) / labelled
        assert images == sum((mask == label).any() for mask in masks)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert any("Classes: 3, as the largest label in the masks is 2" in note for note in notes)


def test_byte_order_mark_is_no_part_of_the_first_class(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\n")
    assert read_names(str(tmp_path / "names.txt")) == ("sky", "road")


def build(init: Path, scenes: Path, classes: tuple[str, ...], **flags: Any) -> tuple[Any, str]:
    said: list[str] = []
    config = config_of(scenes, init=str(init), **flags)
    model = build_segmenter(config, open_pretrained(str(init)), classes, lambda event: said.append(str(event)))
    return model, " ".join(said)


def test_finetuned_classifier_gives_its_backbone_under_a_new_head(finetuned_run, scenes):
    """Intermediate finetuning."""
    model, said = build(finetuned_run, scenes, NAMES)
    theirs = weights(finetuned_run)
    for name, tensor in model.state_dict().items():
        if name in theirs:
            assert torch.equal(tensor, theirs[name]), name
    assert "what followed its blocks is dropped (4 tensors)" in said
    assert "the segmenter's head is new (93 tensors)" in said


def test_segmenter_keeps_its_head_for_the_same_classes_only(segmenter_run, scenes):
    theirs = weights(segmenter_run)
    same, _ = build(segmenter_run, scenes, NAMES)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in same.state_dict().items())
    other, said = build(segmenter_run, scenes, ("other", *NAMES[1:]))
    assert torch.equal(other.cls_token, theirs["cls_token"])
    assert not torch.equal(other.decode_head.conv_seg.weight, theirs["decode_head.conv_seg.weight"])
    assert "what followed its blocks is dropped (93 tensors); the segmenter's head is new (93 tensors)" in said


def test_positions_are_fitted_to_the_crop(pretrained_run, scenes):
    model, said = build(pretrained_run, scenes, NAMES, size=48)
    assert model.architecture.grid == (6, 6)
    assert " of them resized" in said


OWN = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "use_auxiliary_head": False}


def test_transformers_segmenter_goes_on_with_its_own_blocks_and_head(beit, scenes, tmp_path):
    theirs, run = tmp_path / "hf", tmp_path / "run"
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
    hf_segmenter(theirs, 3, **OWN, **names)
    kept, said = build(theirs, scenes, NAMES, size=64)
    assert (kept.out_indices, kept.head_settings) == ((-1, 0, 1, 2), {"pools": [1, 2], "auxiliary": None})
    assert "is new" not in said
    fresh, said = build(theirs, scenes, ("other", *NAMES[1:]), size=64)
    assert (fresh.out_indices, fresh.head_settings) == ((0, 1, 2, 3), {})
    assert "the segmenter's head is new (93 tensors)" in said
    report = finetune(config_of(scenes, init=str(theirs), out=str(run), size=64, steps=2, save_every=1))
    section = json.loads((newest_checkpoint(run).path / "config.json").read_text())["beit"]
    assert (section["blocks"], section["head_settings"]) == ([-1, 0, 1, 2], {"pools": [1, 2], "auxiliary": None})
    opened, _ = load_segmenter(open_model(str(run)))
    assert (opened.out_indices, opened.decode_head.auxiliary) == ((-1, 0, 1, 2), None)
    assert beit("eval", run, scenes, "--workers", 0).lines[0]["miou"] == report.miou
    whole = weights(run)
    (run / "checkpoints" / "latest").write_text("step-0000001\n")
    shutil.rmtree(run / "checkpoints" / "step-0000002")
    finetune(resolve(FinetuneConfig, {"out": str(run), "resume": True}).config)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())


@pytest.mark.slow
def test_blocks_that_no_map_comes_from_keep_their_weights_in_any_number_of_processes(scenes, tmp_path):
    theirs, found = tmp_path / "hf", []
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
    hf_segmenter(theirs, 3, **OWN, **names)  # the last of 4 blocks is not used
    for size in (1, 2):
        run = tmp_path / str(size)
        words = ["finetune", scenes, "--task", "segment", "--recipe", "tiny-segment", "--init", theirs, "--size", 64]
        words += ["--ignore-index", IGNORE, "--classes", scenes / "names.txt", "--steps", 2, "--warmup-steps", 1]
        words += ["--batch-size", 8, "--micro-batch", 4 // size, "--device", "cpu", "--workers", 0, "--out", run]
        ended = in_processes(size, words)
        assert [each.code for each in ended] == [0] * size, ended[0].err
        found.append(weights(run))
    one, two = found
    before = read_tensors(theirs / "model.safetensors")["beit.encoder.layer.3.intermediate.dense.weight"]
    assert torch.equal(one["blocks.3.mlp.fc1.weight"], before)
    for name, tensor in one.items():
        if name.startswith("blocks.3."):
            assert torch.equal(two[name], tensor), name
        elif name.startswith("blocks."):
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)


def test_a_segmenter_of_the_release_s_blocks_and_head_says_nothing_new_in_config_json(segmenter_run):
    section = json.loads((newest_checkpoint(segmenter_run).path / "config.json").read_text())["beit"]
    assert not {"blocks", "head_settings", "resize_positions"} & set(section)


@pytest.mark.parametrize("value", [[0, 1, 2], [0, 1, 2, 9], "0123", [0, 1, 2, None]])
def test_blocks_that_were_edited_by_hand_are_refused(segmenter_run, tmp_path, value):
    folder = Path(shutil.copytree(newest_checkpoint(segmenter_run).path, tmp_path / "edited"))
    document = json.loads((folder / "config.json").read_text())
    document["beit"]["blocks"] = value
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match="blocks = "):
        open_unverified(str(folder))


def test_positions_are_resized_bilinearly_where_that_is_chosen_and_remembered(scenes, tmp_path):
    run = tmp_path / "run"
    start = {"steps": 1, "save_every": 1, "batch_size": 2, "limit": 4, "positions": "absolute"}
    finetune(config_of(scenes, out=str(run), **start))
    positions = weights(run)["pos_embed"]
    grid = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    fitted = {
        how: interpolate(grid, size=(6, 6), mode=mode, align_corners=False).flatten(2).transpose(1, 2)
        for how, mode in (("bilinear", "bilinear"), ("release", "bicubic"))
    }
    for how, expected in fitted.items():
        model, said = build(run, scenes, NAMES, size=48, resize_positions=how)
        torch.testing.assert_close(model.pos_embed[:, 1:], expected, atol=1e-6, rtol=0)
        assert "1 of them resized" in said
    finetune(config_of(scenes, out=str(tmp_path / "chosen"), resize_positions="bilinear", **start))
    chosen = weights(tmp_path / "chosen")["pos_embed"]
    window, _ = load_segmenter(open_model(str(tmp_path / "chosen")), (48, 48))  # as `eval --window` does
    grid = chosen[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = interpolate(grid, size=(6, 6), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(window.pos_embed[:, 1:], expected, atol=1e-6, rtol=0)


def test_a_run_that_is_older_than_resize_positions_goes_on(segmenter_run, tmp_path):
    run = Path(shutil.copytree(segmenter_run, tmp_path / "run"))
    lines = (run / "config.toml").read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith("resize_positions")]
    assert len(older) == len(lines) - 1
    (run / "config.toml").write_text("".join(older))
    resumed = resolve(FinetuneConfig, {"out": str(run), "resume": True}).config
    assert resumed.resize_positions == "release"
    with pytest.raises(UsageError, match='--resize-positions: the run has "release", given is "bilinear"'):
        resolve(FinetuneConfig, {"out": str(run), "resume": True, "resize_positions": "bilinear"})


def drop_masks(folder: Path, masks: list[Path]) -> None:
    for path in masks[:3]:
        path.unlink()


def enlarge(folder: Path, masks: list[Path]) -> None:
    for path in masks[:3]:
        Image.fromarray(pixels_of(path)).resize((30, 30), Image.Resampling.NEAREST).save(path)


def go_outside(folder: Path, masks: list[Path]) -> None:
    for path in masks[:3]:
        mask = pixels_of(path)
        mask[20, 20] = 77
        Image.fromarray(mask).save(path)


def damage(folder: Path, masks: list[Path]) -> None:
    for path in masks[:3]:
        path.write_bytes(path.read_bytes()[:60])


FAULTS: dict[str, tuple[Callable[[Path, list[Path]], None], str]] = {
    "3 of 10 missing": (drop_masks, "it has no mask"),
    "another size": (enlarge, "it is 30 x 30 pixels, the image 52 x 40"),
    "values outside": (go_outside, "it holds the value 77, outside 0..2"),
    "unreadable": (damage, "truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_masks_that_do_not_fit_stop_the_run_past_max_bad_and_are_left_out_below_it(beit, copied, tmp_path, fault):
    spoil, said = FAULTS[fault]
    masks = sorted((copied / "train" / "masks").glob("*.png"))
    spoil(copied, masks)
    run = tmp_path / "run"
    command = [
        "finetune", copied, "--recipe", "tiny-segment", "--init", "random", "--size", 32, "--ignore-index", IGNORE,
        "--classes", copied / "names.txt", "--steps", 1, "--batch-size", 4, "--workers", 0, "--out", run,
    ]  # fmt: skip
    refused = beit(*command)
    assert refused.code == 3, refused.err
    assert "3 of 10 images cannot be read, 1 are allowed" in refused.err
    assert said in refused.err
    assert masks[0].stem in refused.err
    assert not run.exists()
    allowed = beit(*command, "--max-bad", 0.3)
    assert allowed.code == 0, allowed.err
    told = [json.loads(line) for line in (run / "bad-images.jsonl").read_text().splitlines()]
    assert [Path(record["path"]).stem for record in told] == [path.stem for path in masks[:3]]
    assert all(said in record["error"] for record in told)


def test_eval_counts_masks_that_do_not_fit(beit, copied, segmenter_run):
    masks = sorted((copied / "val" / "masks").glob("*.png"))
    masks[0].unlink()
    go_outside(copied, masks[1:2])
    refused = beit("eval", segmenter_run, copied)
    assert (refused.code, "2 of 4 images cannot be read" in refused.err) == (3, True)
    allowed = beit("eval", segmenter_run, copied, "--max-bad", 0.5)
    assert (allowed.lines[0]["images"], allowed.lines[0]["bad"]) == (2, 2)


@pytest.mark.parametrize(("value", "said"), [(1, "one class only, 'top'"), (IGNORE, "no labelled pixel")])
def test_masks_of_one_class_are_refused(copied, tmp_path, value, said):
    for path in copied.glob("*/masks/*.png"):
        Image.fromarray(np.full((40, 52), value, np.uint8)).save(path)
    with pytest.raises(DataError, match=said):
        finetune(config_of(copied, out=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("content", "said"),
    [("a\nb\na\n", "names 'a' twice"), ("\n\n", "names 0 classes"), (None, "No such file"),
     ("\n".join(map(str, range(256))), "names 256 classes")],
)  # fmt: skip
def test_class_names_that_cannot_be_used_are_refused(scenes, tmp_path, content, said):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=said):
        finetune(config_of(scenes, classes=str(path)))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"head": "linear"}, "--head linear is no head of --task segment"),
        ({"task": "classify", "head": "upernet"}, "--head upernet is no head of --task classify"),
        ({"micro_batch": 1}, "leave one image by itself"),
        ({"batch_size": 3, "micro_batch": 2}, "leave one image by itself"),
        ({"size": 8}, "make 1 patch a side"),
        ({"max_resize": 0.2}, "--max-resize is 0.2"),
        ({"ignore_index": 256}, "--ignore-index is 256"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(scenes, tmp_path, flags, said):
    with pytest.raises(UsageError, match=said):
        finetune(config_of(scenes, out=str(tmp_path / "run"), **flags))
    assert not (tmp_path / "run").exists()


def test_task_segment_has_a_recipe_of_its_own(scenes):
    flags = {"data": [str(scenes)], "init": "random", "task": "segment"}
    assert resolve(FinetuneConfig, flags).config.recipe == "base-ade20k"
    assert resolve(FinetuneConfig, flags | {"task": "classify"}).config.recipe == "deit"
    assert resolve(FinetuneConfig, flags | {"recipe": "small-segment"}).config.head == "setr-pup"


def test_without_a_validation_split_some_images_are_held_out(tmp_path):
    for number in range(20):
        save_scene(tmp_path / "data", f"{number:02d}", number)
    report = finetune(config_of(tmp_path / "data", classes=None, steps=1, out=str(tmp_path / "run")))
    assert (report.measured_on, report.images) == ("4 held-out images", 4)


def test_dry_run_tells_the_plan_and_trains_nothing(beit, scenes, tmp_path):
    ended = beit(
        "finetune", scenes, "--recipe", "tiny-segment", "--init", "random", "--size", 32, "--ignore-index", IGNORE,
        "--batch-size", 4, "--workers", 0, "--dry-run", "--out", tmp_path / "run",
    )  # fmt: skip
    (plan,) = ended.lines
    assert (ended.code, plan["dry_run"]) == (0, True)
    assert plan["plan"]["head"].startswith("upernet, ")
    assert "linear to 0" in plan["plan"]["learning rate"]
    assert not (tmp_path / "run").exists()
