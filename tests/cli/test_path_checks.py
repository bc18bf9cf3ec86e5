"""Paths that are not there, told before torch is loaded, in the words and with the code of the engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.config.attn_map import ATTENTION_SUFFIXES, AttnMapConfig
from beitcli.config.fields import settings_of
from beitcli.config.tokenize import TokenizeConfig
from beitcli.engine.io.token_files import FORMATS as TOKENS

TINY = ["--recipe", "tiny"]
LINES = [
    (["predict", "nowhere", "sample"], 4, "There is no model at 'nowhere'."),
    (["eval", "runs/nowhere", "sample"], 4, "There is no model at 'runs/nowhere'."),
    (["inspect", "nowhere"], 4, "There is no model at 'nowhere'."),
    (["export", "nowhere", "-o", "new"], 4, "There is no model at 'nowhere'."),
    (["attn-map", "a.txt", "--model", "nowhere"], 4, "There is no model at 'nowhere'."),
    (["mask-preview", "a.txt", "--model", "nowhere"], 4, "There is no model at 'nowhere'."),
    (["finetune", "sample", *TINY, "--init", "nowhere"], 4, "There is no model at 'nowhere'."),
    (["tokenize", "sample", "--tokenizer", "no/where"], 4, "There is no model at 'no/where'."),
    (["pretrain", "sample", *TINY, "--tokenizer", "no/where"], 4, "There is no model at 'no/where'."),
    (["pretrain", "smaple", *TINY], 3, "'smaple' does not exist."),
    (["train-tokenizer", "sample", "absent/", *TINY], 3, "'absent/' does not exist."),
    (["finetune", "sample", *TINY, "--init", "random", "--val", "absent"], 3, "'absent' does not exist."),
    (["mask-preview", "absent.png"], 3, "'absent.png' does not exist."),
    (
        ["pretrain", "sample", *TINY, "--out", "full"],
        2,
        "--out 'full' is not empty.\n  Give a folder that is new or empty.\n",
    ),
    (["pretrain", "sample", *TINY, "--out", "full", "--resume"], 2, "'full' is not empty and holds no run"),
    (["train-tokenizer", "sample", *TINY, "--out", "a.txt"], 2, "--out 'a.txt' is a file."),
]


def test_paths_that_cannot_do_are_told_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("three years of work")
    program = (
        "import sys; from beitcli.cli.app import main\n"
        f"for line, code, said in {LINES!r}:\n"
        "    print('----', file=sys.stderr, flush=True)\n"
        "    assert main(line) == code, line\n"
        "    assert not {'torch', 'timm', 'beitcli.engine'} & set(sys.modules), line\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = done.stderr.split("----\n")[1:]
    for (_, _, said), err in zip(LINES, told, strict=True):
        assert err.startswith(f"error: {said}")
        assert len(err.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "full", "thesis.txt"]


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "RUN", "IMAGES/*.png"],
        ["predict", "RUN", "IMAGES/0{1,3}.png"],
        ["predict", "RUN", "IMAGES", "sample", "--limit", "2"],
    ],
    ids=str,
)
def test_references_that_name_no_file_are_left_to_the_engine(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, argv: list[str]
) -> None:
    images = str(labelled_folder / "red")
    ended = beit(*(word.replace("RUN", str(finetuned_run)).replace("IMAGES", images) for word in argv))
    assert ended.code == 0, ended.err
    assert ended.lines


def test_tokenizer_that_is_nearly_a_word_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "sample", "--tokenizer", "dale"]) == 4
    assert "Did you mean 'dall-e'?" in capsys.readouterr().err


def test_out_of_a_dry_run_may_be_in_use(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("three years of work")
    flags = ["--vocab-size", 16, "--size", 16, "--width", 8, "--steps", 2, "--batch-size", 4, "--workers", 0]
    assert beit("train-tokenizer", labelled_folder, *TINY, *flags, "--out", tmp_path / "full", "--dry-run").code == 0


def test_suffixes_that_are_checked_early_are_those_of_the_engine() -> None:
    known = {each: settings_of(each)["output"].option.suffixes for each in (AttnMapConfig, TokenizeConfig)}
    assert known == {AttnMapConfig: ATTENTION_SUFFIXES, TokenizeConfig: tuple(TOKENS)}


@pytest.mark.parametrize("command", ["predict", "eval", "embed"])
def test_swapped_arguments_are_told(beit: Callable, finetuned_run: Path, labelled_folder: Path, command: str) -> None:
    for data in (labelled_folder, labelled_folder / "red" / "00.jpg"):
        ended = beit(command, data, finetuned_run)
        assert (ended.code, ended.out) == (2, "")
        assert f"'{data}' is no MODEL, and '{finetuned_run}' is a run" in ended.err.replace("\n  ", " ")
        assert "MODEL comes first: swap the two." in ended.err
    ended = beit(command, "runs/mien", finetuned_run)  # a misspelt MODEL is none of the data
    assert "swap" not in ended.err


def test_the_folder_of_one_class_leads_to_that_of_all(beit: Callable, labelled_folder: Path) -> None:
    ended = beit("finetune", labelled_folder / "red", "--init", "random", "--recipe", "tiny", "--dry-run")
    assert ended.code == 3
    assert (
        f"If the 3 folders with images in '{labelled_folder}' are the classes, give '{labelled_folder}'." in ended.err
    )
