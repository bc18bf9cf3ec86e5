"""Metric writers: metrics.jsonl, TensorBoard, and one that an installed package adds in a single file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beitcli.config.pretrain import PretrainConfig
from beitcli.engine.events import Warned
from beitcli.engine.trainer.metric_log import MetricLog
from beitcli.engine.trainer.metric_writers.jsonl import MetricsJsonl
from beitcli.errors import StorageError
from beitcli.runtime.storage.run_dir import RunFolder

STEPS, SAVE_EVERY, KILLED_AT = 9, 2, 7
TOY = '''
"""A text file of `step loss`; ends its process, or fails, at the step that the environment names."""
import os, signal

class Toy:
    def __init__(self):
        assert os.environ.get("RANK", "0") == "0", "only rank 0 makes writers"
    def start(self, run, config):
        if os.environ.get("TOY_FAILS_AT") == "start":
            raise ValueError("the toy is broken")
        self.path = run.path / "toy.txt"
        self.note(f"start {config.command}")
    def rewind(self, step):
        self.note(f"rewind {step}")
        if os.environ.get("TOY_FAILS_AT") == "rewind":
            raise ValueError("the toy is broken")
    def write(self, step, metrics):
        if str(step) == os.environ.get("TOY_FAILS_AT"):
            raise ValueError("the toy is broken")
        self.note(f"{step} {metrics['loss']!r} {next(iter(metrics))}")
        if str(step) == os.environ.get("TOY_ENDS_AT"):
            os.kill(os.getpid(), int(os.environ["TOY_SIGNAL"]))
    def close(self):
        self.note("close")
    def note(self, line):
        with self.path.open("a") as file:
            file.write(line + "\\n")

WRITER = Toy
'''


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with a distribution of one module, which adds the writer `toy`."""
    folder = tmp_path / "installed"
    info = folder / "toy_writers-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "toy_writers.py").write_text(TOY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-writers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beitcli.engine.trainer.metric_writers]\ntoy = toy_writers\n")
    return folder


def beit(folder: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that finds the modules of `folder` first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BEIT_")}
    path = os.pathsep.join([str(folder), *filter(None, [kept.get("PYTHONPATH"), os.getcwd()])])
    environment = kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables
    line = [sys.executable, "-m", "beitcli", *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def pretraining(run: Path, *words: object) -> list[object]:
    """Of pixels, which need no tokenizer."""
    return [
        "pretrain", "sample", "--recipe", "tiny", "--target", "pixels", "--image-size", 32, "--num-masked", 6,
        "--limit", 40, "--batch-size", 4, "--steps", STEPS, "--save-every", SAVE_EVERY, "--log-every", 1,
        "--workers", 0, "--device", "cpu", "--out", run, *words,
    ]  # fmt: skip


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def assert_as_logged(run: Path) -> None:
    """TensorBoard has every number of metrics.jsonl once, as fp32."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in logged(run):
        for name, value in line.items():
            if name != "step":
                expected.setdefault(name, []).append((int(line["step"]), pytest.approx(value, rel=1e-6)))
    assert scalars(run) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(9, -9), (15, 75)])  # SIGKILL, SIGTERM
def test_a_writer_from_one_new_file_and_tensorboard_go_on_with_a_stopped_run(tmp_path, installed, number, code):
    run = tmp_path / "run"
    stop = {"TOY_ENDS_AT": str(KILLED_AT), "TOY_SIGNAL": str(number)}
    ended = beit(installed, *pretraining(run, "--log-to", "tensorboard,toy"), **stop)
    assert ended.returncode == code, ended.stderr
    before = logged(run)
    assert [line["step"] for line in before] == list(range(1, KILLED_AT + 1))
    ended = beit(installed, "pretrain", "--out", run, "--resume", "--device", "cpu", "--workers", 0)
    assert ended.returncode == 0, ended.stderr

    lines = logged(run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines[:KILLED_AT]] == [line["loss"] for line in before]
    assert_as_logged(run)
    toy = (run / "toy.txt").read_text().splitlines()
    first, second = toy[: KILLED_AT + 2], toy[-(STEPS + 3) :]
    assert first == ["start pretrain", "rewind 0", *(f"{line['step']} {line['loss']!r} epoch" for line in before)]
    start = second.index("start pretrain")
    rewound = int(second[start + 1].removeprefix("rewind "))
    assert rewound == (KILLED_AT if number == 15 else pytest.approx(5, abs=1))  # the newest checkpoint that was whole
    assert second[start + 2 :] == [*(f"{line['step']} {line['loss']!r} epoch" for line in lines[rewound:]), "close"]
    assert toy.count("close") == (2 if number == 15 else 1)


@pytest.mark.slow
def test_a_writer_that_fails_is_left_out_with_one_warning(tmp_path, installed):
    run = tmp_path / "run"
    ended = beit(installed, *pretraining(run, "--log-to", "toy;tensorboard"), TOY_FAILS_AT="3")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("--log-to toy failed") == ended.stderr.count("the toy is broken") == 1
    assert (run / "toy.txt").read_text().splitlines()[-1].startswith("2 ")
    assert len(logged(run)) == STEPS
    assert_as_logged(run)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["start", "rewind"])
def test_a_writer_that_does_not_start_is_left_out_with_one_warning(tmp_path, installed, where):
    run = tmp_path / "run"
    ended = beit(installed, *pretraining(run, "--log-to", "toy"), TOY_FAILS_AT=where)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("--log-to toy failed") == ended.stderr.count("the toy is broken") == 1
    assert not (run / "toy.txt").exists() or (run / "toy.txt").read_text() == "start pretrain\nrewind 0\n"
    assert len(logged(run)) == STEPS


@pytest.mark.slow
def test_of_several_processes_one_writes(tmp_path, installed):
    run = tmp_path / "run"
    ended = beit(installed, *pretraining(run, "--gpus", 2, "--log-to", "toy", "--log-to", "tensorboard"))
    assert ended.returncode == 0, ended.stderr
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert [line.split()[0] for line in (run / "toy.txt").read_text().splitlines()] == [
        "start", "rewind", *map(str, range(1, STEPS + 1)), "close",
    ]  # fmt: skip
    assert_as_logged(run)


def test_tensorboard_that_is_not_installed_is_told_before_anything_is_made(tmp_path):
    blocked = tmp_path / "blocked" / "tensorboard"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError('No module named tensorboard')\n")
    ended = beit(blocked.parent, *pretraining(tmp_path / "run", "--log-to", "tensorboard"))
    said = " ".join(ended.stderr.split())
    assert ended.returncode == 2, said
    assert "--log-to tensorboard needs the package tensorboard, which is not installed." in said
    assert "pip install 'tensorboard>=2.17'" in said
    assert not (tmp_path / "run").exists()


def test_help_and_refusals_know_the_writers(tmp_path, installed):
    assert "mlflow|tensorboard|wandb|toy,..." in beit(installed, "pretrain", "--help", COLUMNS="200").stdout
    ended = beit(installed, *pretraining(tmp_path / "run", "--log-to", "toy,tensorbord"))
    assert ended.returncode == 2
    assert "--log-to is 'tensorbord', which is no choice." in " ".join(ended.stderr.split())
    assert "Did you mean 'tensorboard'?" in ended.stderr
    refused = beit(installed, *pretraining(tmp_path / "run", "--log-to", "jsonl"))  # always on, so no choice
    assert refused.returncode == 2


# metrics.jsonl


def jsonl(folder: Path) -> MetricsJsonl:
    writer = MetricsJsonl()
    writer.start(RunFolder.create(folder, resume=folder.exists()), PretrainConfig(steps=1))
    return writer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").touch()
    return folder


def test_rewound_metrics_drop_later_and_unfinished_lines(run):
    writer = jsonl(run)
    writer.rewind(5)
    assert not (run / "metrics.jsonl").exists()
    for step in (2, 4, 6):
        writer.write(step, {"loss": step / 2})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    writer.rewind(4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]
    writer.write(6, {})
    assert (run / "metrics.jsonl").read_text().endswith('"loss": 2.0}\n{"step": 6}\n')


@pytest.mark.parametrize("line", ["12", "null", "[1, 2]", '{"loss": 1}', '{"step": null}'])
def test_rewound_metrics_drop_lines_that_are_no_metrics(run, line):
    writer = jsonl(run)
    writer.write(1, {})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    writer.rewind(4)
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_rewound_metrics_drop_a_line_of_broken_bytes(run):
    (run / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\x00\xfe\n')
    jsonl(run).rewind(4)
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_only_finite_metrics_are_written(run):
    log = MetricLog({"jsonl": MetricsJsonl()}, lambda event: None)
    log.start(RunFolder.create(run, resume=True), PretrainConfig(steps=1), 0)
    log.write(3, {"epoch": 0.5, "loss": 1.25, "psnr": float("inf"), "spread": float("nan")})
    assert logged(run) == [{"step": 3, "epoch": 0.5, "loss": 1.25}]


def test_metrics_that_cannot_be_written_to_the_run_stop_it(run):
    """Other than those of another writer."""
    events: list[object] = []
    log = MetricLog({"jsonl": MetricsJsonl()}, events.append)
    log.writers["jsonl"].start(RunFolder.create(run, resume=True), PretrainConfig(steps=1))
    (run / "metrics.jsonl").unlink(missing_ok=True)
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        log.write(1, {"loss": 1.0})
    assert not [event for event in events if isinstance(event, Warned)]


def test_metrics_that_cannot_be_rewound_stop_the_run(run):
    log, folder = MetricLog({"jsonl": MetricsJsonl()}, lambda event: None), RunFolder.create(run, resume=True)
    (run / "metrics.jsonl").unlink(missing_ok=True)
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        log.start(folder, PretrainConfig(steps=1), 0)
