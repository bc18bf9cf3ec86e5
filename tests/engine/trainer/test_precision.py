"""The same run in two precisions: the losses stay close, step by step."""

from __future__ import annotations

import json

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.pretrain import pretrain

BAND = 0.05  # nats; docs/performance.md has the measured one of 200 steps


def test_losses_in_bf16_stay_beside_those_in_fp32(tmp_path, labelled_folder, tokenizer_run):
    losses = {}
    for precision in ("fp32", "bf16"):
        flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer_run), "steps": 12}
        flags |= {"data": [str(labelled_folder)], "out": str(tmp_path / precision), "device": "cpu", "workers": 0}
        flags |= {"batch_size": 8, "log_every": 1, "precision": precision}
        pretrain(resolve(PretrainConfig, flags).config)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [json.loads(line)["loss"] for line in lines]
    differences = [abs(a - b) for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    assert len(differences) == 12
    assert 0 < max(differences) < BAND
