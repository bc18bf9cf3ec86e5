"""`--log-to tensorboard`, `wandb` and `mlflow`: scalars, settings and pictures, as their own readers find them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from beitcli.config.common import METRIC_WRITERS
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.runtime.extras import install_line
from beitcli.runtime.storage.run_dir import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")  # of their own packages
METRICS = {"epoch": 0.5, "loss": 5.25, "held_out_iou/a cat": 0.75}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes two steps of a run and, resumed, a third with the writer of a name; returns the run's folder."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def write(name: str) -> Path:
        config = resolve(PretrainConfig, {"recipe": "tiny", "data": ["sample"], "lr": 0.00125}).config
        Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / "step-0000002.png")
        for steps in ((1, 2), (3,)):
            writer = METRIC_WRITERS.load(name)()
            writer.start(RunFolder(tmp_path), config)
            writer.rewind(steps[0] - 1)
            for step in steps:
                if step == 2:
                    writer.picture(step, "previews", tmp_path / "step-0000002.png")
                writer.write(step, METRICS | {"loss": float(step)})
            writer.close()
        return tmp_path

    return write


def test_tensorboard_has_scalars_settings_and_pictures(written: Any) -> None:
    pytest.importorskip("tensorboard")
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(written("tensorboard") / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert set(events.Tags()["scalars"]) == set(METRICS)
    (picture,) = events.Images("previews")
    assert (picture.step, picture.width, picture.height) == (2, 8, 6)
    (settings, *_) = events.Tensors("config/text_summary")
    assert b"| lr | 0.00125 |" in settings.tensor_proto.string_val[0]


@pytest.mark.slow
def test_mlflow_has_scalars_settings_and_pictures_of_one_run(written: Any) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="the whole package mlflow is not installed")
    folder = written("mlflow") / "mlflow"
    client = import_module("mlflow.tracking").MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "beit"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["lr"] == "0.00125"
    assert set(run.data.metrics) == set(METRICS)
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 1.0), (2, 2.0), (3, 3.0),
    ]  # fmt: skip
    assert [path.name for path in folder.rglob("*.png")] == ["step-0000002.png"]
    assert run.info.status == "FINISHED"


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a file of W&B: those of LevelDB's log, after 7 bytes of its own."""
    record_of = import_module("wandb.proto.wandb_internal_pb2").Record
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = record_of()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.slow
def test_wandb_is_offline_and_has_scalars_settings_and_pictures(written: Any) -> None:
    pytest.importorskip("wandb")
    folder = written("wandb") / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # one ID
    records = [record for file in files for record in wandb_records(file)]
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    found = {int(row["_step"]): row for row in rows}
    assert {step: float(row["loss"]) for step, row in found.items()} == {1: 1.0, 2: 2.0, 3: 3.0}
    assert found[1]["held_out_iou/a cat"] == "0.75"
    assert found[2]["previews/caption"] == '"step 2"'
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert {each.key: each.value_json for each in run.config.update}["lr"] == "0.00125"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_writer_without_its_package_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, beit: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.setitem(__import__("sys").modules, f"{name}.tracking", None)
    ended = beit("pretrain", "sample", "--recipe", "tiny", "--log", name, "--out", tmp_path / "run")
    assert ended.code == 2
    assert f"Install it: {install_line(name)}, or leave {name} out." in " ".join(ended.err.split())
