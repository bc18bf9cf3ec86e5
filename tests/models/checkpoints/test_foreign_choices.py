"""Which file of another program's folder is taken, and what looking for it costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beitcli.models.checkpoints.foreign_folders import newest_weights

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["best_acc_0.953.pth", "epoch_10.pth"], "epoch_10.pth"),
        (["best_acc_0.953.pth", "epoch_9.pth", "epoch_10.pth"], "epoch_10.pth"),
        (["model_best.pth", "best-top1-81.pth"], None),
        (["best_mIoU_iter_8000.pth", "iter_4000.pth"], "best_mIoU_iter_8000.pth"),
        (["best_mIoU_iter_8000.pth", "iter_16000.pth"], "iter_16000.pth"),
        (["checkpoint-best.pth", "checkpoint-9.pth", "checkpoint-11.pth"], "checkpoint-11.pth"),
    ],
)
def test_a_score_in_a_name_is_no_step(tmp_path: Path, names: list[str], taken: str | None) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = newest_weights(tmp_path, WEIGHTS)
    assert (None if found is None else found.name) == taken


def test_a_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    (tmp_path / "class").mkdir()
    listed: list[str] = []
    for name in ("scandir", "listdir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", real=real: (listed.append(str(path)), real(path))[1])
    assert newest_weights(tmp_path, WEIGHTS) is None
    assert listed.count(str(tmp_path)) == 1
