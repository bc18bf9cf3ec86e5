"""Segmenters and detectors on timm's and others' vision Transformers, from the command line to the masks and boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import load_segmenter, open_backbone
from beitcli.models.checkpoints.open import open_model, open_unverified
from beitcli.models.networks.timm_dense import TimmDetector, TimmSegmenter
from beitcli.runtime.storage.checkpoint import load_tensors
from tests.helpers.scenes import IGNORE
from tests.helpers.vit_layouts import dino, moco_v3, save, small_vit

DEIT = "timm/deit_tiny_distilled_patch16_224@random,patch_size=8,depth=2,embed_dim=24,num_heads=2"
FLAGS = ("--size", 32, "--batch-size", 4, "--workers", 0, "--device", "cpu", "--steps", 4, "--save-every", 2)


def segment(scenes: Path) -> tuple[object, ...]:
    names = ("--classes", scenes / "names.txt", "--ignore-index", IGNORE)
    return (scenes, "--task", "segment", "--recipe", "tiny-segment", "--head", "setr-pup", *names, *FLAGS)


def detect(rectangles: Path) -> tuple[object, ...]:
    small = ("--head-width", 16, "--regions", 16)
    return (rectangles, "--task", "detect", "--recipe", "tiny-detect", *small, *FLAGS)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    from beitcli.cli.app import main

    run = tmp_path_factory.mktemp("deit") / "segmenter"
    words = ("finetune", *segment(scenes), "--init", DEIT, "--drop-path", 0.2, "--out", run)
    assert main([str(word) for word in words]) == 0
    return run


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, rectangles: Path) -> Path:
    from beitcli.cli.app import main

    run = tmp_path_factory.mktemp("deit") / "detector"
    words = ("finetune", *detect(rectangles), "--init", DEIT, "--drop-path", 0.2, "--out", run)
    assert main([str(word) for word in words]) == 0
    return run


@pytest.mark.parametrize("task", ["segmenter", "detector"])
def test_a_run_goes_on_bit_for_bit(request, beit, tmp_path, task):
    whole = request.getfixturevalue(task)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoints" / "latest").write_text("step-0000002\n")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    ended = beit("finetune", "--out", run, "--resume", "--workers", 0)
    assert ended.code == 0, ended.err
    for name in ("model.safetensors", "trainer.safetensors"):
        first, second = (each / "checkpoints" / "step-0000004" / name for each in (whole, run))
        assert first.read_bytes() == second.read_bytes()


def test_a_segmenter_is_measured_alike_and_predicts(beit, scenes, segmenter, tmp_path):
    told = json.loads(beit("eval", segmenter, scenes, "--workers", 0).out)
    trained = [json.loads(line) for line in (segmenter / "metrics.jsonl").read_text().splitlines()]
    assert told["miou"] == pytest.approx(trained[-1]["held_out_miou"], abs=1e-9)
    ended = beit("predict", segmenter, scenes / "val" / "images", "-o", tmp_path / "masks", "--workers", 0)
    assert (ended.code, len(ended.lines)) == (0, 4), ended.err
    found = json.loads(beit("inspect", segmenter).out)
    assert (found["format"], found["kind"], found["classes"]) == ("beit", "segmenter", 3)
    assert found["architecture"]["name"] == "deit_tiny_distilled_patch16_224"
    assert found["architecture"]["head"] == "setr-pup"
    assert "# ViT segmenter" in (segmenter / "README.md").read_text()
    ended = beit("export", segmenter, "--to", "timm", "-o", tmp_path / "out")
    assert (ended.code, "is a segmenter, which has no export" in ended.err) == (2, True)


@torch.no_grad()
def test_windows_of_another_size_see_resampled_positions(beit, scenes, segmenter):
    model, checkpoint = load_segmenter(open_model(str(segmenter)), (48, 64))
    assert isinstance(model, TimmSegmenter)
    assert [each.shape for each in model.maps(torch.zeros(1, 3, 48, 64))] == [(1, 24, 6, 8)] * 4
    assert any("pos_embed" in warning for warning in checkpoint.warnings)
    ended = beit("eval", segmenter, scenes, "--window", 48, "--stride", 32, "--multi-scale", "--flip", "--workers", 0)
    assert (ended.code, json.loads(ended.out)["images"]) == (0, 4), ended.err


def test_the_embeddings_are_no_block_of_a_timm_model(segmenter, tmp_path):
    folder = Path(shutil.copytree(segmenter / "checkpoints" / "step-0000004", tmp_path / "edited"))
    document = json.loads((folder / "config.json").read_text())
    document["beit"]["blocks"] = [-1, 0, 1, 1]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(StorageError, match="block -1, the embeddings"):
        open_unverified(str(folder))


def test_a_detector_is_measured_alike_and_predicts(beit, rectangles, detector, tmp_path):
    pytest.importorskip("pycocotools")
    told = json.loads(beit("eval", detector, rectangles, "--workers", 0).out)
    trained = [json.loads(line) for line in (detector / "metrics.jsonl").read_text().splitlines()]
    assert told["ap"] == pytest.approx(trained[-1]["held_out_ap"], abs=1e-9)
    ended = beit("predict", detector, rectangles / "val", "--workers", 0)
    assert ended.code == 0, ended.err
    import beitcli

    assert isinstance(beitcli.load_model(detector, progress=False).network, TimmDetector)


def test_backbone_and_head_go_on_from_a_segmenter(beit, scenes, segmenter, labelled_folder, tmp_path):
    before = load_tensors(segmenter / "checkpoints" / "step-0000004" / "model.safetensors")
    still = ("--steps", 1, "--lr", 1e-12, "--min-lr", 0)
    ended = beit("finetune", *segment(scenes), "--init", segmenter, "--out", tmp_path / "a", *still)
    assert ended.code == 0, ended.err
    after = load_tensors(tmp_path / "a" / "checkpoints" / "step-0000001" / "model.safetensors")
    learned = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert max(float((after[name] - before[name]).abs().max()) for name in learned) < 1e-6
    ended = beit("finetune", labelled_folder, "--recipe", "tiny", "--init", segmenter, "--out", tmp_path / "b", *FLAGS)
    assert ended.code == 0, ended.err
    assert "the classifier's head is new (" in " ".join(ended.err.split())
    model, _ = open_backbone(str(segmenter))
    assert torch.equal(model.blocks[1].mlp.fc1.weight, before["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("make", [dino, moco_v3])
def test_others_weights_are_finetuned_probed_and_looked_at(beit, scenes, labelled_folder, tmp_path, make):
    theirs = small_vit()
    path = save(make(theirs), tmp_path / "theirs.pth")
    still = ("--steps", 1, "--lr", 1e-12, "--min-lr", 0)
    ended = beit("finetune", *segment(scenes), "--init", path, "--out", tmp_path / "run", *still)
    assert ended.code == 0, ended.err
    after = load_tensors(tmp_path / "run" / "checkpoints" / "step-0000001" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("norm."):
            torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    words = ("--recipe", "tiny", "--init", path, "--out", tmp_path / "classifier")
    ended = beit("finetune", labelled_folder, *words, *FLAGS)
    assert ended.code == 0, ended.err
    assert "# ViT classifier" in (tmp_path / "classifier" / "README.md").read_text()
    for protocol in ("knn", "linear"):
        words = ("--train", labelled_folder, "--protocol", protocol, "--workers", 0)
        ended = beit("eval", path, labelled_folder, *words)
        assert ended.code == 0, ended.err
    ended = beit("attn-map", labelled_folder / "red" / "00.jpg", "--model", path, "-o", tmp_path / "map.png", "--json")
    assert (ended.code, ended.lines[0]["grid"]) == (0, [4, 4]), ended.err
    ended = beit("export", path, "--to", "timm", "-o", tmp_path / "out")
    assert (ended.code, "no BEiT" in ended.err) == (2, True)
