"""Settings and weights of a small detector, for the tests of detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.resolve import resolve
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.weight_files.reader import read_tensors


def config_of(data: Path | str, **flags: Any) -> FinetuneConfig:
    plain = {
        "data": [str(data)], "recipe": "tiny-detect", "init": "random", "size": 32, "head_width": 16, "regions": 16,
        "steps": 4, "batch_size": 4, "save_every": 2, "log_every": 1, "warmup_steps": 1, "device": "cpu", "workers": 0,
    }  # fmt: skip
    return resolve(FinetuneConfig, plain | flags).config


def command_of(data: Path, run: Path) -> list[object]:
    return [
        "finetune", data, "--recipe", "tiny-detect", "--init", "random", "--size", 32, "--head-width", 8, "--regions",
        8, "--steps", 1, "--batch-size", 4, "--workers", 0, "--out", run,
    ]  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(newest_checkpoint(run, weights_only=True).path / "model.safetensors")
