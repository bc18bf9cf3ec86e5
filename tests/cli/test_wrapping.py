"""Lines on a terminal: broken between words, with what one would copy in one piece; into a pipe as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from beitcli.cli.console import CommandConsole
from beitcli.cli.wrapping import arranged, columns, wrapped
from beitcli.errors import UsageError
from tests.cli.test_contract import at_terminal

COLOUR = re.compile(r"\x1b\[[\d;]*m")
WORDS = "The quick brown fox jumps over the lazy dog, and then over another one."


def test_lines_break_between_words_and_hang() -> None:
    assert wrapped(f"error: {WORDS}", 40).split("\n") == [
        "error: The quick brown fox jumps over",
        "       the lazy dog, and then over",
        "       another one.",
    ]
    assert wrapped(f"  {WORDS}\nshort", 40).split("\n") == [
        "  The quick brown fox jumps over the",
        "    lazy dog, and then over another one.",
        "short",
    ]
    assert wrapped(WORDS, len(WORDS)) == WORDS
    assert wrapped("", 40) == ""


def test_a_sentence_that_begins_with_a_command_is_a_sentence() -> None:
    text = "Train another one first: beit train-tokenizer, until beit tokenize --stats says that it suits."
    assert wrapped(text, 40).split("\n") == [
        "Train another one first:",
        "  beit train-tokenizer, until",
        "  beit tokenize --stats says that it",
        "  suits.",
    ]


@pytest.mark.parametrize(
    "whole",
    [
        "`beit eval runs/mine photos/ --protocol knn --train photos/`",
        "'a folder with spaces/and a name - that is long.png'",
        "beit train-tokenizer DATA --recipe small --out runs/tokenizer",
        "/a/path-with-hyphens/that/is/much/longer/than/the/line/model.safetensors",
    ],
)
def test_what_one_would_copy_stays_whole(whole: str) -> None:
    lines = wrapped(f"error: There is nothing to see at {whole} and this goes on for some time.", 40).split("\n")
    assert sum(whole in line for line in lines) == 1
    assert all(len(line) <= 40 for line in lines if whole not in line)
    assert max(len(line) for line in lines) <= 7 + len(whole)


def test_a_command_behind_a_colon_stays_whole_to_the_end_of_its_line() -> None:
    command = "beit pretrain photos/ --out runs/mine --resume --batch-size 64 --workers 2"
    assert wrapped(f"  Go on from the last checkpoint with: {command}", 50).split("\n") == [
        "  Go on from the last checkpoint with:",
        f"    {command}",
    ]
    assert wrapped(f"  {command}", 50) == f"  {command}"


def test_parts_of_what_is_said_of_a_name_are_kept_whole() -> None:
    best, second, third = "golden retriever 0.612", "Irish setter 0.201", "cocker  spaniel 0.093"
    assert arranged("a.jpg", [best, second], 80) == [["a.jpg", best, second]]
    assert arranged("a.jpg", [best, second, third], 45) == [["a.jpg", best], [second, third]]
    assert arranged("a.jpg", [best, second, third], 44) == [["a.jpg", best], [second], [third]]
    assert arranged("photos/of/dogs/a.jpg", [best, second], 40) == [["photos/of/dogs/a.jpg"], [best], [second]]
    assert arranged("a.jpg", [WORDS], 40) == [
        ["a.jpg"],
        ["The quick brown fox jumps over the"],
        ["  lazy dog, and then over another"],
        ["  one."],
    ]


def test_scores_on_a_terminal_stand_below_the_path_and_the_best_is_bold() -> None:
    scores = ["golden retriever 0.612", "Irish setter 0.201", "cocker spaniel 0.093"]

    def tell() -> int:
        CommandConsole().print_about("photos/a.jpg", scores, "bold")
        return 0

    said = at_terminal(tell, COLUMNS="46")[1].replace("\r", "")
    assert said == f"photos/a.jpg  \x1b[1m{scores[0]}\x1b[0m\n    {scores[1]}  {scores[2]}\n"
    said = at_terminal(tell, COLUMNS="30")[1].replace("\r", "")
    assert said.splitlines() == [
        "photos/a.jpg",
        *(f"    {each}" for each in (f"\x1b[1m{scores[0]}\x1b[0m", *scores[1:])),
    ]


def test_wide_characters_take_two_columns() -> None:
    assert columns("a漢") == 3
    assert wrapped("漢漢漢 漢漢漢 漢漢漢", 14).split("\n") == ["漢漢漢 漢漢漢", "  漢漢漢"]


def test_errors_are_wrapped_on_a_terminal_and_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    error = UsageError(WORDS + " " + WORDS, f"{WORDS} {WORDS}\n{WORDS}")

    def tell() -> int:
        CommandConsole().print_error(error)
        return 0

    _, said = at_terminal(tell, COLUMNS="60")
    lines = COLOUR.sub("", said).replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split()[0] for line in lines if line[:3].strip()] == ["error:", "The", "The"]
    assert " ".join(" ".join(lines).split()) == f"error: {WORDS} {WORDS} {WORDS} {WORDS} {WORDS}"
    tell()
    assert capsys.readouterr().err == f"error: {WORDS} {WORDS}\n  {WORDS} {WORDS}\n  {WORDS}\n"


def test_a_long_path_of_an_error_is_in_one_piece_on_a_terminal(tmp_path: Path, beit: Callable) -> None:
    path = tmp_path / "there is no such folder" / ("x" * 60)
    code, said = at_terminal(lambda: main(["predict", str(path), "sample"]), COLUMNS="60")
    assert code == 4
    assert f"'{path}'" in COLOUR.sub("", said)
    assert f"error: There is no model at '{path}'.\n" in beit("predict", path, "sample").err
