"""`beit recipes`, `beit runs`, `beit env`, and help by word."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from importlib import metadata

import pytest

from beitcli.cli.app import main
from beitcli.cli.console import CommandConsole
from beitcli.config.about import RecipesConfig
from beitcli.config.recipe_files import RECIPES, recipe_names
from beitcli.engine.recipes import list_recipes
from beitcli.runtime.extras import EXTRAS
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.storage.safe_json import dump_rows
from tests.cli.test_contract import at_terminal


def runs_of(beit, folder):
    return json.loads(beit("runs", folder, "--json").out)


def test_recipes_lists_every_recipe_with_what_it_is_for(beit):
    found = json.loads(beit("recipes", "--json").out)
    assert {(each["command"], each["name"]) for each in found} == {
        (path.parent.name, path.stem) for path in RECIPES.glob("*/*.toml")
    }
    assert all(len(each["about"]) > 20 and "Expected there" not in each["about"] for each in found)
    base = next(each for each in found if (each["command"], each["name"]) == ("pretrain", "base"))
    assert base["about"] == "BEiT-B on ImageNet-1k, as in the paper: arXiv 2106.08254, Table 12 and section 2.5"
    assert base["settings"] == tomllib.loads((RECIPES / "pretrain" / "base.toml").read_text())


def test_lists_have_a_line_for_each_element_in_one_json_document(beit, folder_of_runs):
    for ended in (beit("recipes", "--json"), beit("runs", folder_of_runs, "--json")):
        first, *elements, last = ended.out.splitlines()
        assert (first, last) == ("[", "]")
        assert [json.loads(line.rstrip(",")) for line in elements] == json.loads(ended.out)
    assert dump_rows([]) == "[]"


def test_recipes_on_a_terminal_are_by_command_smallest_first_without_sources(beit, monkeypatch):
    monkeypatch.setattr("beitcli.cli.console.CommandConsole.wants_json", False)
    monkeypatch.setenv("COLUMNS", "80")
    told = beit("recipes").out
    parts = [told.index(f"beit {command} --recipe") for command in ("train-tokenizer", "pretrain", "finetune")]
    assert parts == sorted(parts)
    of_pretrain = told[parts[1] : parts[2]]
    assert of_pretrain.index("\ntiny ") < of_pretrain.index("\nsmall ") < of_pretrain.index("\nablation-no-mask ")
    assert "BEiT-B on ImageNet-1k, as in the paper\n" in "\n".join(line.rstrip() for line in told.splitlines()) + "\n"
    assert max(map(len, told.splitlines()[:-1])) <= 80


def test_recipes_shows_one_of_each_command_that_has_it(beit):
    assert [each["command"] for each in json.loads(beit("recipes", "base", "--json").out)] == ["pretrain", "finetune"]


def test_an_unknown_recipe_gets_a_suggestion(beit):
    ended = beit("recipes", "smal")
    assert ended.code == 2
    assert "Did you mean 'small'?" in ended.err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pretrain", "small"], [("pretrain", "small")]),
        (["small", "pretrain"], [("pretrain", "small")]),
        (["finetune", "pretrain", "base"], [("pretrain", "base"), ("finetune", "base")]),
        (["base", "large", "pretrain"], [("pretrain", "base"), ("pretrain", "large")]),
        (["train-tokenizer"], [("train-tokenizer", name) for name in recipe_names("train-tokenizer")]),
    ],
    ids=str,
)
def test_recipes_takes_commands_and_names_in_any_order(beit, words, found):
    assert [(each["command"], each["name"]) for each in json.loads(beit("recipes", *words, "--json").out)] == found


def test_recipes_says_what_there_is_when_a_name_is_unknown(beit):
    there = f"pretrain has {', '.join(recipe_names('pretrain'))}."
    for words in (["pretrain", "tiny-segment"], ["tiny-segment", "pretrain"]):
        ended = beit("recipes", *words)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err == f"error: pretrain has no recipe 'tiny-segment'.\n  {there}\n"
    assert there in beit("recipes", "pretrain", "qqqq").err
    assert "Did you mean 'pretrain'?" in beit("recipes", "pretrian").err


@pytest.fixture
def folder_of_runs(tmp_path, pretrained_run, finetuned_run):
    """A finished pretraining, a finished classifier deeper down, and a pretraining that lost its last checkpoint."""
    folder = tmp_path / "runs"
    shutil.copytree(pretrained_run, folder / "a")
    shutil.copytree(finetuned_run, folder / "deep" / "b")
    shutil.copytree(pretrained_run, folder / "c")
    (folder / "c" / "README.md").unlink()
    (folder / "empty").mkdir()
    return folder


def test_runs_tells_state_step_and_figures(beit, folder_of_runs, finetuned_run):
    found = {each["run"]: each for each in runs_of(beit, folder_of_runs)}
    assert found.keys() == {str(folder_of_runs / name) for name in ("a", "deep/b", "c")}
    a, b, c = (found[str(folder_of_runs / name)] for name in ("a", "deep/b", "c"))
    assert (a["command"], a["recipe"], a["state"], a["step"]) == ("pretrain", "tiny", "done", 4)
    assert (b["command"], b["state"]) == ("finetune", "done")
    assert c["state"] == "stopped"
    newest = max((finetuned_run / "checkpoints").glob("step-*"))
    assert b["figures"]["top1"] == json.loads((newest / "trainer.json").read_text())["figures"]["top1"]
    assert "masked_accuracy" in a["figures"]


def test_a_run_that_was_stopped_in_its_tokenizer_is_stopped(beit, folder_of_runs, tokenizer_run):
    interrupted = folder_of_runs / "d"
    interrupted.mkdir()
    shutil.copy(folder_of_runs / "a" / "config.toml", interrupted)
    (found,) = (each for each in runs_of(beit, folder_of_runs) if each["run"] == str(interrupted))
    assert (found["state"], found["tokenizer_step"]) == ("empty", None)
    shutil.copytree(tokenizer_run, interrupted / "tokenizer")
    (found,) = (each for each in runs_of(beit, folder_of_runs) if each["run"] == str(interrupted))
    assert (found["state"], found["step"], found["tokenizer_step"]) == ("stopped", 0, 4)


def test_runs_writes_a_share_as_a_percentage_however_they_are_sorted(beit, tmp_path, monkeypatch):
    as_on_a_terminal = property(lambda console: console.as_json)
    monkeypatch.setattr(CommandConsole, "wants_json", as_on_a_terminal)
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.toml").write_text('command = "pretrain"\nrecipe = "tiny"\n')
    figures = {"masked_accuracy": 0.084, "baseline_accuracy": 0.008, "masked_accuracy_std_error": 0.00291, "miou": 0.3}
    line = {"step": 4} | {f"held_out_{name}": value for name, value in figures.items()}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    told = {sort: beit("runs", run.parent, "--sort", sort).out for sort in ("when", *figures)}
    assert told["when"].splitlines()[1].endswith("<1 min  masked accuracy 8.4% = 10.5 x guessing")
    assert "masked accuracy 8.4%" in told["masked_accuracy"]
    assert "standard error of the masked accuracy 0.0029" in told["masked_accuracy_std_error"]
    assert "mean IoU 30.0%" in told["miou"]
    (found,) = json.loads(beit("runs", run.parent, "--sort", "miou", "--json").out)
    assert found["figures"] == figures


def test_runs_sorts_by_a_figure_with_those_that_lack_it_behind(beit, folder_of_runs):
    for name, figures in (("a", {"loss": 3.0}), ("c", {"loss": 2.0})):
        path = max((folder_of_runs / name / "checkpoints").glob("step-*")) / "trainer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": figures}))
    names = [
        os.path.basename(each["run"])
        for each in json.loads(beit("runs", folder_of_runs, "--sort", "loss", "--json").out)
    ]
    assert names == ["c", "a", "b"]
    ended = beit("runs", folder_of_runs, "--sort", "nothing")
    assert ended.code == 2
    assert "top1" in ended.err


def test_a_run_whose_lock_is_held_is_running_and_may_be_listed(beit, folder_of_runs):
    run = RunFolder.create(folder_of_runs / "c", resume=True)
    found = {each["run"]: each["state"] for each in runs_of(beit, folder_of_runs)}
    assert found[str(folder_of_runs / "c")] == "running"
    del run


def test_runs_takes_damaged_files_for_what_they_are(beit, folder_of_runs):
    (folder_of_runs / "a" / "config.toml").write_bytes(b"\xff\x00")
    newest = max((folder_of_runs / "c" / "checkpoints").glob("step-*"))
    (newest / "trainer.json").write_text("[1, 2")
    os.mkfifo(folder_of_runs / "deep" / "config.toml")  # a folder above b that looks like a run, and cannot be read
    (folder_of_runs / "c" / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n{"step": 4, "lo')
    found = {each["run"]: each for each in runs_of(beit, folder_of_runs)}
    assert found[str(folder_of_runs / "a")]["command"] == found[str(folder_of_runs / "deep")]["command"] == "?"
    (newest / "trainer.json").write_text('{"step": ' + "9" * 400 + ', "figures": {"loss": ' + "9" * 400 + "}}")
    assert beit("runs", folder_of_runs, "--json").code == 0
    (newest / "trainer.json").write_text("[" * 200_000)
    assert beit("runs", folder_of_runs, "--json").code == 0
    assert (found[str(folder_of_runs / "c")]["step"], found[str(folder_of_runs / "c")]["figures"]) == (3, {"loss": 1.5})


def test_a_report_written_later_leaves_a_run_as_old_as_it_is(beit, folder_of_runs):
    run = folder_of_runs / "a"
    for path in (run / "config.toml", run / "metrics.jsonl", *run.glob("checkpoints/*/trainer.json")):
        os.utime(path, (1000, 1000))
    for path in run.glob("tokenizer/metrics.jsonl"):
        os.utime(path, (900, 900))
    assert beit("report", run).code == 0
    (found,) = (each for each in runs_of(beit, folder_of_runs) if each["run"] == str(run))
    assert found["when"] == 1000


@pytest.mark.parametrize("words", [("runs", "nowhere"), ("runs", ".")])
def test_a_folder_without_runs_is_an_error_of_data(beit, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert beit(*words).code == 3


def test_env_tells_versions_and_keeps_secrets(beit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hf_abc@hub.example/x")
    ended = beit("env", "--json")
    found = ended.lines[0]
    assert ended.code == 0
    assert found["packages"].keys() >= {"torch", "timm", "safetensors"}
    assert found["variables"] == found["variables"] | {
        "HF_TOKEN": "(set)",
        "HF_HOME": "/somewhere",
        "HF_ENDPOINT": "https://hub.example/x",
    }
    assert "hf_abc" not in ended.out


def test_env_has_readable_names_on_a_terminal(beit):
    code, said = at_terminal(lambda: main(["env"]))
    (told,) = beit("env", "--json").lines
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    facts = dict(re.findall(r"^(\S+(?: \S+)*) {2,}(\S.*?)\s*$", plain, re.MULTILINE))
    assert facts["memory"] == f"{told['memory_gib']:g} GiB"
    assert facts["free space there"].endswith(" GiB")
    assert facts["CPU cores"] == str(told["cpu_cores"])
    assert facts["bf16 units of the CPU"] in ("yes", "no")
    assert not {"cpu", "gib", "cuda"} & set(" ".join(facts).split())


def test_env_names_what_of_the_extras_is_installed_and_nothing_else(beit):
    packages = beit("env", "--json").lines[0]["packages"]
    for requirement in (each for extra in EXTRAS.values() for each in extra):
        name = requirement.partition(">")[0]
        try:
            expected = metadata.version(name)
        except metadata.PackageNotFoundError:
            expected = None
        assert packages.get(name) == expected, name


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("help",), ("--help",)),
        (("help", "eval"), ("eval", "--help")),
        (("help", "help"), ("--help",)),
        (("help", "--help"), ("--help",)),
    ],
)
def test_help_is_a_word_too(beit, words, same):
    asked = beit(*words)
    assert asked.code == 0
    assert asked.out == beit(*same).out
    assert "Usage" in asked.out
    assert re.search(r"^. help +Show the help", beit("--help").out, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.toml")), ids=lambda path: f"{path.parent.name} {path.stem}")
def test_a_shown_recipe_fits_80_columns_and_is_the_same_toml(path):
    (recipe,) = [each for each in list_recipes(RecipesConfig(name=(path.stem,))) if each.command == path.parent.name]
    assert max(map(len, recipe.text.splitlines())) <= 80
    assert tomllib.loads(recipe.text) == tomllib.loads(path.read_text())
    comments = " ".join(line.removeprefix("#").strip() for line in recipe.text.splitlines() if line.startswith("#"))
    assert recipe.header in comments
