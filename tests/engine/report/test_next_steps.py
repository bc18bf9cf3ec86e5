"""The commands that a card and a report propose: they can be pasted as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from beitcli.config.resolve import resolve
from beitcli.engine.report.next_steps import next_commands, note_of, tokenizer_commands
from beitcli.escaping import shell_line
from tests.documents.reading import flags_of


def lines(command: str, **settings: object) -> list[str]:
    found = [shell_line(words) for words in next_commands(command, settings, "runs/a b")]
    for line in found:
        config, flags = flags_of(line)  # an option that the command lacks is an error
        assert resolve(config, flags).config
    return found


def test_a_run_on_the_drawn_images_goes_on_with_them() -> None:
    assert lines("pretrain", data=["sample"], recipe="tiny") == [
        "beit mask-preview sample --limit 4 --model 'runs/a b' -o masked.png",
        "beit attn-map sample --limit 1 --model 'runs/a b' -o attention.png",
        "beit finetune sample --init 'runs/a b' --recipe tiny",
    ]
    assert lines("finetune", data=["sample"], recipe="tiny", val=None) == [
        "beit eval 'runs/a b' sample",
        "beit predict 'runs/a b' sample --limit 4",
    ]


def test_a_stopped_run_goes_on_and_a_file_does_not_say_where_it_writes() -> None:
    settings = {"data": ["sample"], "recipe": "tiny", "token_cache": "/home/u/.ssh"}
    first, *rest = next_commands("pretrain", settings, "runs/a b", can_resume=True)
    assert shell_line(first) == "beit pretrain --out 'runs/a b' --resume"
    assert rest == next_commands("pretrain", settings, "runs/a b")
    assert next_commands("pretrain", settings, "runs/a b", can_resume=True, has_model=False) == [first]
    assert next_commands("unknown", settings, "runs/a b", can_resume=True) == []
    assert [note_of(words) for words in rest] == [""] * len(rest)


@pytest.mark.parametrize("command", ["train-tokenizer", "pretrain", "finetune"])
def test_beside_the_command_that_resumes_stands_what_a_run_does_not_store(command: str) -> None:
    first, *_ = next_commands(command, {"data": ["photos/"]}, "r", can_resume=True)
    assert note_of(first).startswith("Add --device, --gpus, --nodes")
    assert ("--token-cache" in note_of(first)) == (command == "pretrain")


def test_a_run_on_the_images_of_stdin_has_no_command_that_resumes_it() -> None:
    settings = {"data": ["-"], "recipe": "tiny"}
    assert next_commands("pretrain", settings, "r", can_resume=True) == next_commands("pretrain", settings, "r")


def test_a_tokenizer_is_given_to_the_recipe_of_its_name() -> None:
    """The default recipe takes days."""
    tokenize, pretrain = lines("train-tokenizer", data=["photos/", "more.tar"], recipe="small")
    assert tokenize == "beit tokenize photos/ more.tar --limit 4 --tokenizer 'runs/a b' --reconstruct out/"
    assert pretrain == "beit pretrain photos/ more.tar --recipe small --tokenizer 'runs/a b'"
    assert "--recipe" not in lines("train-tokenizer", data=["photos/"], recipe="imagenet-8k")[1]


@pytest.mark.parametrize("command", ["train-tokenizer", "pretrain", "finetune"])
def test_images_of_stdin_cannot_be_read_again(command: str) -> None:
    for line in lines(command, data=["-"], recipe="tiny"):
        assert " - " not in line
        assert "sample" not in line


@pytest.mark.parametrize(
    ("there", "taken", "free"),
    [
        ([], "own", "runs/tokenizer"),
        ([], "runs/tokenizer", "runs/tokenizer-2"),  # of a run that was copied here without it
        (["runs/tokenizer"], "own", "runs/tokenizer-2"),
        (["runs/tokenizer", "runs/tokenizer-2"], "runs/tokenizer/", "runs/tokenizer-3"),
    ],
)
def test_another_tokenizer_is_trained_into_a_free_folder_and_pretrained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], taken: str, free: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
    found = tokenizer_commands({"data": ["photos/"], "recipe": "tiny", "tokenizer": taken})
    assert [shell_line(words) for words in found] == [
        f"beit train-tokenizer photos/ --recipe small --out {free}",
        f"beit tokenize photos/ --tokenizer {free} --stats",
        f"beit pretrain photos/ --recipe tiny --tokenizer {free}",
    ]
    for words in found:
        assert resolve(*flags_of(shell_line(words))).config
