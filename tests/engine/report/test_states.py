"""What a report says of a run that is finished, stopped or just begun: its state, its steps, what to do next."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from beitcli.engine.report.page import report_document, report_page
from beitcli.engine.report.run_state import read_run
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
