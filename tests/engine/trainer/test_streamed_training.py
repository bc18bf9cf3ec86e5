"""Training on a data set that is streamed: the same losses whoever loads, cut off and resumed, or from files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from beitcli.cli.app import main
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.pretrain import PretrainReport, pretrain
from beitcli.runtime.hub import http_ranges as ranges
from tests.helpers.hub_server import HubServer

REPO = "datasets/owner/large"
STEPS = 6


@pytest.fixture(scope="module")
def content() -> bytes:
    """210 images of 20 kB in 70 groups, six more than a window holds."""
    images = []
    for number in range(210):
        file = BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (80, 84, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "BMP")
        images.append({"bytes": file.getvalue(), "path": None})
    written = BytesIO()
    parquet.write_table(pa.table({"image": images}), written, row_group_size=3, compression="none")
    return written.getvalue()


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(ranges, "PAUSES", (0.0, 0.0))
    with HubServer({REPO: {"train.parquet": content}}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        yield server


def flags(out: Path, tokenizer: Path, **more: object) -> dict[str, object]:
    common = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer), "device": "cpu"}
    common |= {"steps": STEPS, "batch_size": 8, "save_every": 2, "log_every": 1, "workers": 0, "holdout": 8}
    return common | {"data": [f"hf://{REPO}"], "out": str(out)} | more


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_losses_of_a_stream_are_the_same_whoever_loads_and_after_a_cut(
    server: HubServer, content: bytes, tokenizer_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = pretrain(resolve(PretrainConfig, flags(tmp_path / "alone", tokenizer_run)).config)
    assert isinstance(alone, PretrainReport)
    assert sum(server.sent) < 0.9 * len(content)  # 48 images of 6 steps, 8 held out, and what a window may bring
    shared = pretrain(resolve(PretrainConfig, flags(tmp_path / "shared", tokenizer_run, workers=2)).config)
    assert isinstance(shared, PretrainReport)
    assert losses(tmp_path / "alone") == losses(tmp_path / "shared")
    assert alone.loss == shared.loss

    cut = tmp_path / "cut"
    for path in (tmp_path / "cache" / "streams").glob("*/*"):
        path.unlink()
    given = {name: value for name, value in flags(cut, tokenizer_run, workers=2).items() if name != "data"}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["pretrain", f"hf://{REPO}", *options]
    served = iter(range(40))  # the hub is gone when it was asked so often
    whole = server.commit

    def then_gone(repo: str) -> str:
        if next(served, None) is None:
            server.status = 503
        return whole(repo)

    server.commit = then_gone  # type: ignore[method-assign]
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "owner/large/train.parquet' was cut off" in said
    assert "--resume" in said
    server.commit, server.status = whole, None  # type: ignore[method-assign]
    assert main([*command, "--resume"]) == 0
    assert losses(cut) == losses(tmp_path / "alone")
