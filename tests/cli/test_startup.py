"""What a command imports before it answers: only its own module, and no library that it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beitcli.cli.command_table import COMMANDS

HEAVY = {"torch", "timm", "torchvision", "huggingface_hub"}
UNUSED = {"rich", "pydantic"} | HEAVY  # by what prints no table on a terminal
COMPILERS = {"torch._dynamo", "torch._inductor", "sympy"}
WITHOUT_TORCH = {"mask-preview", "doctor", "inspect", "recipes", "runs", "report", "cache"}
TRAINS = {"pretrain", "finetune", "train-tokenizer", "export"}  # or may compile; `env` tells about torch

OF_COMMAND = """
import os, sys
import beitcli.cli.typer_app
from beitcli.cli.app import main
from beitcli.cli.command_table import COMMANDS

def modules():
    return {name for name in sys.modules if name.startswith("beitcli.cli.commands.")}

def child(work):
    number = os.fork()
    if number == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(number, 0)[1] == 0

def answers(command, absent):
    codes = [main([command.name, "--help"]), main([command.name, "--no-such-option"])]
    assert codes == [0, 2], (command.name, codes)
    assert modules() == {command.module}, (command.name, modules())
    assert not absent & set(sys.modules), (command.name, absent & set(sys.modules))

def completes(words, expected):
    os.environ |= {"_BEIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    try:
        main([])
    except SystemExit:
        pass
    assert modules() == expected, (words, modules())
"""


def run(lines: list[list[Any]], absent: set[str], *, folder: Path, deferred: bool = False) -> tuple[list[int], str]:
    """Runs command lines in one new process; fails if it has imported any of `absent`.

    Args:
        deferred: Whether torch's compiler is deferred, as in the program.
    """
    lines = [[str(word) for word in line] for line in lines]
    program = (
        "import sys; from beitcli.cli.app import main\n"
        f"from beitcli.runtime.deferred_compiler import defer_compiler\nif {deferred}: defer_compiler()\n"
        f"codes = [main(line) for line in {lines!r}]\n"
        f"print(codes, {absent!r} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder, errors="replace"
    )
    *said, last = done.stderr.splitlines()
    codes, _, loaded = last.partition("] ")
    assert loaded == "set()", done.stderr
    return [int(code) for code in codes.strip("[").split(",")], "\n".join(said)


def test_help_of_the_program_imports_no_command_and_no_library() -> None:
    absent = UNUSED | {"typer", "numpy", "PIL", "dataclasses", "importlib.metadata", "beitcli.config"}
    program = (
        "import sys; from beitcli.cli.app import main\n"
        "lines = (['--help'], ['-h'], ['help'], [], ['--version'], ['-V'])\n"
        "assert [main(words) for words in lines] == [0, 0, 0, 2, 0, 0]\n"
        f"loaded = {absent!r} & set(sys.modules)\n"
        "loaded |= {name for name in sys.modules if name.startswith('beitcli.cli.commands.')}\n"
        "assert not loaded, loaded\n"
        "assert main(['pretrian']) == 2\n"
        f"loaded = {UNUSED | {'typer', 'numpy'}!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: beit [OPTIONS] COMMAND") == 4


def test_each_command_imports_its_own_module_alone_for_its_help_and_a_wrong_option() -> None:
    absent = UNUSED | {"numpy", "PIL", "safetensors", "beitcli.engine", "importlib.metadata", "importlib.resources"}
    program = f"{OF_COMMAND}\nfor each in COMMANDS: child(lambda: answers(each, {absent!r}))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"Usage: beit {command.name}" in done.stdout for command in COMMANDS)


def test_completion_imports_the_module_of_the_command_that_is_typed() -> None:
    program = (
        f"{OF_COMMAND}\nchild(lambda: completes('beit pre', set()))\n"
        "for each in COMMANDS: child(lambda: completes(f'beit {each.name} --he', {each.module}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("--help") == len(COMMANDS)
    assert "pretrain" in done.stdout.split()


def test_masks_without_a_model_need_no_torch(picture: Any, tmp_path: Path) -> None:
    image = picture("x.png")
    lines: list[list[Any]] = [
        ["mask-preview", image, "-o", "masked.png"],
        ["mask-preview", tmp_path, "--json"],
        ["mask-preview", "--stats", 20],
        ["mask-preview", image, "-o", "x.gif"],
        ["mask-preview", "sample", "--limit", 2, "--ratio", 7],
    ]
    others = {"PIL.PdfImagePlugin", "beitcli.models.checkpoints.open", "beitcli.engine.io.features"}
    codes, _ = run(lines, UNUSED | others, folder=tmp_path)
    assert codes == [0, 0, 0, 2, 2]


def test_statistics_of_masks_open_no_image(tmp_path: Path) -> None:
    absent = UNUSED | {"PIL", "beitcli.data", "beitcli.models", "beitcli.pictures"}
    assert run([["mask-preview", "--stats", 20]], absent, folder=tmp_path)[0] == [0]


def test_what_computes_nothing_needs_no_torch(pretrained_run: Path, finetuned_run: Path, tmp_path: Path) -> None:
    lines: dict[str, list[list[Any]]] = {
        "inspect": [["inspect", pretrained_run], ["inspect", finetuned_run, "--json"]],
        "runs": [["runs", pretrained_run.parent]],
        "report": [["report", pretrained_run, finetuned_run, "-o", "both.html"]],
        "recipes": [["recipes"], ["recipes", "tiny"]],
        "cache": [["cache", "dir"], ["cache", "list"]],
        "doctor": [["doctor", "sample", "--limit", 4, "--workers", 0]],
        "mask-preview": [["mask-preview", "--stats", 3]],
    }
    assert lines.keys() == WITHOUT_TORCH
    every = [line for each in lines.values() for line in each]
    assert run(every, UNUSED, folder=tmp_path)[0] == [0] * len(every)


@pytest.mark.slow
def test_what_does_not_train_loads_no_compiler(
    pretrained_run: Path, finetuned_run: Path, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    image, here = labelled_folder / "red" / "00.jpg", ["--workers", 0, "--device", "cpu"]
    lines: dict[str, list[Any]] = {
        "predict": ["predict", finetuned_run, image, *here],
        "tokenize": ["tokenize", image, "--tokenizer", tokenizer_run, *here],
        "attn-map": ["attn-map", image, "--model", pretrained_run, "-o", "map.png", *here],
        "embed": ["embed", pretrained_run, image, *here],
        "eval": ["eval", finetuned_run, labelled_folder, *here],
        "mask-preview": ["mask-preview", image, "--model", pretrained_run, "-o", "guessed.png", *here],
        "pack": ["pack", labelled_folder, "-o", "packed", "--workers", 0],
    }
    names = {command.name for command in COMMANDS}
    assert lines.keys() | WITHOUT_TORCH | TRAINS | {"env"} == names, "a new command belongs in one of these"
    codes, _ = run(list(lines.values()), COMPILERS | {"wandb", "rich", "pydantic"}, folder=tmp_path, deferred=True)
    assert codes == [0] * len(lines)


def test_wrong_arguments_are_refused_before_torch_is_imported(picture: Any, tmp_path: Path) -> None:
    image, run_name = picture("x.png"), "no/such/run"
    (tmp_path / "there").mkdir()
    cases: list[tuple[list[Any], int, str]] = [
        (["attn-map", image, "--model", tmp_path / "there", "-o", "map.gif"], 2, "ends in no format"),
        (["attn-map", image], 2, "there is no run under runs/"),
        (["attn-map", "no.png", "--model", tmp_path / "there"], 3, "'no.png' does not exist"),
        (["attn-map", image, "--model", run_name], 4, "There is no model"),
        (["attn-map", "gone.png", "--model", run_name], 4, "And: 'gone.png' does not exist"),
        (["tokenize", image, "--tokenizer", tmp_path / "there", "-o", "x.txt"], 2, "ends in no format that is known"),
        (["tokenize", "no.png", "--tokenizer", tmp_path / "there"], 3, "does not exist"),
        (["embed", tmp_path / "there", image, "-o", "x.png"], 2, "give --query IMAGE"),
        (["embed", tmp_path / "there", image, "--query", "no.png"], 3, "does not exist"),
        (["embed", run_name, image], 4, "There is no model"),
        (["predict", run_name, image], 4, "There is no model"),
        (["eval", run_name, "sample"], 4, "There is no model"),
        (["pretrain", "no/such/folder"], 3, "does not exist"),
        (["finetune", "sample", "--init", run_name], 4, "There is no model"),
        (["export", run_name, "--to", "timm", "-o", "out"], 4, "There is no model"),
    ]
    codes, said = run([line for line, _, _ in cases], {"torch", "timm", "torchvision"}, folder=tmp_path)
    assert codes == [code for _, code, _ in cases]
    for _, _, words in cases:
        assert words in said
