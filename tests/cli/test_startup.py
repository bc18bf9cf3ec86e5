"""What a command imports before it answers: no torch where none is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

HEAVY = {"torch", "timm", "torchvision", "huggingface_hub"}


def run(lines: list[list[Any]], absent: set[str], *, folder: Path) -> tuple[list[int], str]:
    """Runs command lines in one new process; fails if it has imported any of `absent`."""
    lines = [[str(word) for word in line] for line in lines]
    program = (
        "import sys; from beitcli.cli.app import main\n"
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


def test_masks_without_a_model_need_no_torch(picture: Any, tmp_path: Path) -> None:
    image = picture("x.png")
    lines: list[list[Any]] = [
        ["mask-preview", image, "-o", "masked.png"],
        ["mask-preview", tmp_path, "--json"],
        ["mask-preview", "--stats", 20],
        ["mask-preview", image, "-o", "x.gif"],
        ["mask-preview", "sample", "--limit", 2, "--ratio", 7],
    ]
    codes, _ = run(lines, HEAVY, folder=tmp_path)
    assert codes == [0, 0, 0, 2, 2]


def test_inspect_needs_no_torch(pretrained_run: Path, finetuned_run: Path, tmp_path: Path) -> None:
    lines: list[list[Any]] = [["inspect", pretrained_run], ["inspect", finetuned_run, "--json"]]
    assert run(lines, {"torch"}, folder=tmp_path)[0] == [0, 0]


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
