"""What a report says of a run that is finished, stopped or just begun: its state, its steps, what to do next."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from beitcli.cli.path_checks import hold_resumed
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.report.page import report_document, report_page
from beitcli.engine.report.record import read_record
from beitcli.engine.report.run_state import read_run
from beitcli.engine.report.run_time import RunTime
from beitcli.engine.trainer.metric_writers.jsonl import MetricsJsonl
from beitcli.runtime.storage.run_dir import RunFolder, hold_run
from tests.engine.report.test_document import classified, saved, write_run


def make_older(file: Path) -> None:
    """As a copy without its times may."""
    os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize(("planned", "state"), [(40, "done"), (80, "stopped"), (None, "stopped")])
def test_the_planned_steps_tell_whether_a_copied_run_is_finished(
    tmp_path: Path, planned: int | None, state: str
) -> None:
    """Of a run that does not say them, the times of its files tell."""
    run = saved(write_run(tmp_path / "run"), planned=planned)
    make_older(run / "README.md")
    assert read_run(run).state == state
    make_older(run / "checkpoints" / "step-0000040" / "trainer.json")
    assert read_run(run).state == ("done" if planned is None else state)
    (run / "README.md").unlink()
    assert read_run(run).state == "stopped"


def test_a_finished_run_says_how_many_steps_it_was_to_have(pretrained_run: Path) -> None:
    trainer = json.loads((pretrained_run / "checkpoints" / "step-0000002" / "trainer.json").read_text())
    assert (trainer["step"], trainer["planned_steps"]) == (2, 4)


@pytest.mark.parametrize(
    ("step", "planned", "next"),
    [
        (40, 40, ["mask-preview", "attn-map", "finetune"]),
        (40, 80, ["pretrain --out RUN --resume", "mask-preview", "attn-map", "finetune"]),
        (0, None, ["pretrain --out RUN --resume"]),
    ],
)
def test_the_first_command_of_a_stopped_run_goes_on_with_it(
    tmp_path: Path, step: int, planned: int | None, next: list[str]
) -> None:
    run = write_run(tmp_path / "run")
    run = saved(run, step=step, planned=planned) if step else run
    (told,) = report_document([run])["runs"]
    lines = [line.removeprefix("beit ").replace(str(run), "RUN") for line in told["next"]]
    assert [line if "--resume" in line else line.split()[0] for line in lines] == next


def test_figures_of_an_earlier_save_say_so(tmp_path: Path) -> None:
    run = saved(classified(write_run(tmp_path / "run"), ["cat"], [[0, 0, 4]]), step=45, planned=80)
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"step": 20}))
    (told,) = report_document([run])["runs"]
    assert (told["step"], told["measured_step"], told["classes_step"]) == (45, 40, 20)
    assert "<td>stopped, step 45, measured at step 40</td>" in report_page([run])


def test_the_time_of_a_run_is_the_whole_and_its_parts(tmp_path: Path) -> None:
    run = saved(write_run(tmp_path / "run"))
    for folder, seconds, measuring in ((run, 12.4, 1.9), (run / "tokenizer", 170.0, 8.0)):
        newest = folder / "checkpoints" / "step-0000040"
        newest.mkdir(parents=True, exist_ok=True)
        (newest / "trainer.json").write_text(
            json.dumps({"step": 40, "seconds": seconds, "measuring_seconds": measuring})
        )
    (told,) = report_document([run])["runs"]
    assert (told["seconds"], told["total_seconds"]) == (12.4, pytest.approx(192.3))
    assert told["facts"]["time"] == "3 min 12 s: tokenizer 2 min 58 s, training 12 s, measuring 2 s"
    assert told["facts"]["time"] in report_page([run])
    assert str(RunTime(training=7300.0)) == "2 h 01 min"


def test_a_run_that_goes_on_shows_its_last_logged_step_and_its_tokenizers(tmp_path: Path) -> None:
    """Checkpoints of hours ago said nothing of what a resumed run does now."""
    run = saved(write_run(tmp_path / "run"), step=20, planned=80)
    for file in (run / "config.toml", run / "metrics.jsonl", *run.glob("checkpoints/*/trainer.json")):
        make_older(file)
    assert (read_run(run).state, read_run(run).step, read_run(run).when) == ("stopped", 20, 1e9)
    held = hold_run(run)
    going_on = read_run(run)
    assert (going_on.state, going_on.step) == ("running", 20)  # 40 was logged by the attempt before
    assert going_on.when > 1.7e9
    writer = MetricsJsonl()
    writer.start(RunFolder(run), {})
    writer.rewind(20)
    assert read_run(run).step == 20
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 23, "loss": 1.0}\n')
    assert read_run(run).step == 23
    del held
    assert read_run(run).state == "stopped"
    begun, own = tmp_path / "begun", tmp_path / "begun" / "tokenizer"
    own.mkdir(parents=True)
    (begun / "config.toml").write_text('command = "pretrain"\n')
    (own / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    make_older(own / "metrics.jsonl")
    assert (read_run(begun).state, read_run(begun).tokenizer_step) == ("empty", None)
    held = hold_run(begun)
    assert (read_run(begun).state, read_run(begun).tokenizer_step) == ("running", None)
    (own / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    assert (read_run(begun).state, read_run(begun).step, read_run(begun).tokenizer_step) == ("running", 0, 3)
    del held


def test_a_resumed_run_is_held_before_torch_is_loaded(pretrained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pretrained_run, tmp_path / "run"))
    flags = {"out": str(run), "resume": True}
    held = hold_resumed(resolve(PretrainConfig, flags).config)
    assert read_run(run).state == "running"
    again = RunFolder.create(run, resume=True)  # of this process: it shares the lock
    del held, again
    assert read_run(run).state == "done"
    assert hold_resumed(resolve(PretrainConfig, flags | {"dry_run": True}).config) is None


def test_the_option_of_how_long_a_training_is_is_the_one_that_was_given(tmp_path: Path) -> None:
    settings = {
        tmp_path: 'command = "pretrain"\nsteps = 400\n',
        tmp_path / "tokenizer": 'command = "train-tokenizer"\nsteps = 100\n',
        tmp_path / "alone": 'command = "finetune"\nepochs = 3.0\n',
        tmp_path / "alone" / "tokenizer": 'command = "train-tokenizer"\nsteps = 100\n',  # in a folder of that name
    }
    for folder, text in settings.items():
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(text)
    told = [read_record(folder).measured.length for folder in settings]
    assert told == ["--steps", "--tokenizer-steps", "--epochs", "--steps"]
