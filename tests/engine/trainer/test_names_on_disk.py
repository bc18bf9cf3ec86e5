"""What a run writes keeps its names, whatever the code calls them: runs of earlier versions must go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beitcli.cli.app import main

TRAINER = {"bad", "data", "figures", "images_per_second", "images_seen", "micro_batch", "scaler", "seconds", "step"}
TRAINER |= {"arithmetic", "left_out", "measuring_seconds", "on_training", "planned_steps", "threads"}
MODEL = {"architecture", "kind", "masking", "mean", "outputs", "std", "target", "token_size", "tokenizer"}
SHAPE = {"depth", "heads", "image_size", "layer_scale", "mlp_ratio", "norm_eps", "patch_size", "positions", "width"}
METRICS = {
    "data_wait_share",
    "epoch",
    "gradient_norm",
    "held_out_baseline_loss",
    "held_out_loss",
    "images_per_second",
    "loss",
    "lr",
    "step",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("names") / "run"
    words = ["pretrain", "sample", "--recipe", "tiny", "--target", "pixels", "--steps", "2", "--batch-size", "8",
             "--limit", "40", "--workers", "0", "--device", "cpu", "--quiet", "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    return out


def test_a_checkpoint_has_the_files_and_keys_of_earlier_versions(run):
    checkpoint = run / "checkpoints/step-0000002"
    files = {path.name for path in checkpoint.iterdir()}
    assert files == {
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
        "trainer.json",
        "trainer.safetensors",
    }
    trainer = json.loads((checkpoint / "trainer.json").read_text())
    assert set(trainer) == TRAINER
    assert set(trainer["figures"]) == {"baseline_loss", "loss"}
    config = json.loads((checkpoint / "config.json").read_text())
    assert set(config) == {"beit"}
    assert set(config["beit"]) == MODEL
    assert set(config["beit"]["architecture"]) == SHAPE


def test_a_line_of_metrics_has_the_names_of_earlier_versions(run):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last) - {"save_stall_seconds"} == METRICS
