"""A new segmentation head is one new file: the commands and `inspect` know it by its entry point alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beitcli.config.tasks import TASKS
from beitcli.data.sources.segmentation import SAMPLE_CLASSES
from tests.helpers.plugins import beit_with, install

GROUP = "beitcli.heads.segmentation"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install("toy_head", GROUP, "toy", folder)
    return folder


@pytest.fixture(scope="module")
def toy_run(site, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("toy") / "run"
    ended = beit_with(
        site, "finetune", "sample", "--init", "random", "--recipe", "tiny-segment", "--head", "toy", "--steps", 2,
        "--batch-size", 2, "--limit", 40, "--workers", 0, "--out", run, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["task"], report["step"]) == ("segment", 2)
    assert 0 <= report["miou"] <= 1
    return run


def test_help_lists_a_new_head_with_its_task(site):
    shown = " ".join(beit_with(site, "finetune", "--task", "segment", "--help").stdout.replace("│", " ").split())
    names = TASKS.load("segment").head_names()
    assert f"segment: {', '.join(names)}, toy" in shown


def test_a_new_head_is_refused_by_other_tasks(site):
    ended = beit_with(site, "finetune", "sample", "--init", "random", "--task", "detect", "--head", "toy")
    assert ended.returncode == 2
    assert "--head toy is no head of --task detect" in ended.stderr


def test_a_new_head_is_measured_as_in_training(site, toy_run):
    ended = beit_with(site, "eval", toy_run, "sample", "--limit", 4, "--workers", 0, "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["task"], report["images"]) == ("segment", 4)
    assert 0 <= report["miou"] <= 1


def test_a_new_head_writes_masks(site, toy_run, tmp_path):
    ended = beit_with(
        site, "predict", toy_run, "sample", "--limit", 2, "--workers", 0, "-o", tmp_path / "masks", "--json"
    )
    assert ended.returncode == 0, ended.stderr
    documents = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [Path(each["output"]).is_file() for each in documents] == [True, True]
    assert all(abs(sum(each["classes"].values()) - 1) < 1e-9 for each in documents)


@pytest.mark.parametrize("alone", [False, True], ids=["run", "weights alone"])
def test_a_new_head_is_told_without_torch(site, toy_run, tmp_path, alone):
    """Though its file imports torch; of the weights by themselves by `KEYS`, its classes by `CLASSIFIER`."""
    named = toy_run
    if alone:
        (weights,) = toy_run.glob("checkpoints/step-0000002/model.safetensors")
        named = shutil.copy(weights, tmp_path / "weights.safetensors")
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from beitcli.cli.app import main; "
        "code = main(['inspect', sys.argv[1], '--json']); sys.exit('loaded torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(named)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kind"], found["architecture"]["head"], found["classes"]) == ("segmenter", "toy", len(SAMPLE_CLASSES))


BROKEN = ("beitcli.config.tasks", "beitcli.data.sources.formats", "beitcli.tokenizers.pretrained")


@pytest.mark.parametrize("source", ["ENTRY = = 1", "raise ValueError('it is broken')"])
def test_broken_entries_of_other_groups_break_no_command(toy_run, tmp_path, source):
    """Beside a head written as `module:attr`."""
    site = tmp_path / "site"
    install("toy_head", GROUP, "toy", site)
    points = site / "toy_head-1.0.dist-info" / "entry_points.txt"
    broken = "".join(f"[{group}]\nbroken = broken_entries.inner\n" for group in BROKEN)
    points.write_text(f"[{GROUP}]\ntoy = toy_head:HEAD\n{broken}")
    (site / "broken_entries").mkdir()
    (site / "broken_entries" / "__init__.py").write_text(source)
    (site / "broken_entries" / "inner.py").touch()
    (weights,) = toy_run.glob("checkpoints/step-0000002/model.safetensors")
    alone = shutil.copy(weights, tmp_path / "weights.safetensors")
    ended = {
        "help": beit_with(site, "finetune", "--task", "segment", "--help"),
        "inspect": beit_with(site, "inspect", alone, "--json"),
        "eval": beit_with(site, "eval", toy_run, "sample", "--limit", 2, "--workers", 0, "--json"),
    }
    assert {name: each.returncode for name, each in ended.items()} == dict.fromkeys(ended, 0), ended
    assert "broken_entries" not in "".join(each.stderr for each in ended.values())
    assert json.loads(ended["inspect"].stdout)["architecture"]["head"] == "toy"
    named = beit_with(site, "finetune", "sample", "--init", "random", "--task", "broken")
    assert named.returncode == 2
    assert "Task 'broken' of module 'broken_entries.inner' cannot be loaded" in " ".join(named.stderr.split())


def test_a_head_that_is_not_installed_is_refused_by_name(toy_run, beit):
    ended = beit("eval", toy_run, "sample", "--limit", 4)
    assert ended.code == 4
    known = " or ".join(TASKS.load("segment").head_names())
    assert f"is a segmenter with another head than {known}" in ended.err
