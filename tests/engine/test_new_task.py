"""A new task is one new package: every command knows it by its entry point alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beitcli.config.tasks import TASKS, TaskDefinition, task_of_head, task_of_kind
from tests.helpers.plugins import beit_with, install


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install("brightness", "beitcli.config.tasks", "brightness", folder)
    return folder


@pytest.fixture(scope="module")
def brightness_run(site, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("brightness") / "run"
    ended = beit_with(
        site, "finetune", "sample", "--task", "brightness", "--init", "random", "--steps", 8, "--batch-size", 8,
        "--limit", 120, "--workers", 0, "--lr", 0.002, "--out", run, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert list(report)[:3] == ["run", "checkpoint", "task"]
    times = ["images_per_second", "seconds", "measuring_seconds", "total_seconds"]
    assert list(report)[8:] == ["measured_on", "mean_error", *times]
    assert (report["task"], report["images"], report["classes"]) == ("brightness", 6, 0)
    assert 0 <= report["mean_error"] < 0.5
    assert "--task brightness, recipe tiny" in (run / "README.md").read_text()
    return run


def test_a_new_task_is_a_choice_and_has_its_own_help(site):
    ended = beit_with(site, "finetune", "--task", "brightness", "--help")
    assert ended.returncode == 0, ended.stderr
    assert "settings of --task brightness" in ended.stdout.replace("\n", " ")
    assert "--mixup" not in ended.stdout


def test_a_new_task_goes_on_with_a_run(site, brightness_run):
    ended = beit_with(site, "finetune", "--out", brightness_run, "--resume", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["step"] == 8


def test_a_new_task_s_model_is_measured_predicted_and_inspected(site, brightness_run):
    measured = beit_with(site, "eval", brightness_run, "sample", "--limit", 5, "--workers", 0, "--json")
    assert measured.returncode == 0, measured.stderr
    report = json.loads(measured.stdout)
    assert (report["task"], report["protocol"], report["images"]) == ("brightness", "head", 5)
    predicted = beit_with(site, "predict", brightness_run, "sample", "--limit", 3, "--workers", 0, "--json")
    assert [json.loads(line)["brightness"] for line in predicted.stdout.splitlines()] == [
        pytest.approx(0.5, abs=0.6) for _ in range(3)
    ]
    found = json.loads(beit_with(site, "inspect", brightness_run, "--json").stdout)
    assert (found["kind"], found["format"], found["dropped"]) == ("photometer", "beit", [])


def test_a_new_task_s_backbone_starts_another(site, brightness_run, tmp_path):
    ended = beit_with(
        site, "finetune", "sample", "--init", brightness_run, "--recipe", "tiny", "--steps", 1, "--batch-size", 4,
        "--limit", 40, "--workers", 0, "--out", tmp_path / "run",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "(a photometer, format beit)" in ended.stderr
    assert "what followed its blocks is dropped (2 tensors)" in ended.stderr


def test_a_task_that_is_not_installed_is_no_choice(brightness_run, beit):
    assert beit("eval", brightness_run, "sample", "--limit", 4).code == 4
    assert "--task is 'brightness'" in beit("finetune", "sample", "--init", "random", "--task", "brightness").err


@pytest.mark.parametrize("taken", ["kind='segmenter'", "kind='other', prefix='decode_head.'", None])
def test_a_task_that_stands_in_the_way_of_ours_is_left_out(tmp_path, taken):
    """By its kind or prefix, or as no task at all; only its name is refused."""
    source = (
        f"TaskDefinition(name='rival', engine='rival', opener='', default_head='linear', {taken})" if taken else "5"
    )
    (tmp_path / "rival.py").write_text(f"from beitcli.config.tasks import TaskDefinition\nTASK = {source}\n")
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beitcli.config.tasks]\nrival = rival\n")
    assert beit_with(tmp_path, "finetune", "--task", "segment", "--help").returncode == 0
    ended = beit_with(tmp_path, "finetune", "sample", "--init", "random", "--task", "rival")
    assert ended.returncode == 2
    assert "Task 'rival' of module 'rival' cannot be loaded" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_s_file_is_named_as_the_task_and_names_what_is_there(name):
    task: TaskDefinition = TASKS.load(name)
    assert task.name == name
    assert task_of_kind(task.kind) is task
    assert task.head_names()[0] == task.default_head
    assert task_of_head([f"{task.prefix}x"]) == (task if task.prefix else None)
    assert task.heads is None or all(isinstance(task.heads.load(head), type) for head in task.head_names())
