"""The name that is proposed for a misspelt one: a typing error away, or the only one with all its parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count, product
from types import FrameType
from typing import Any

import pytest

from beitcli.config import nearest as module
from beitcli.config.nearest import nearest, suggestion


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("photso", ["notes", "photos"], "photos"),
        ("Photos", ["photos"], "photos"),
        ("phots", ["photos", "pots"], "photos"),
        ("photographsd", ["photographs"], "photographs"),
        ("hpotos", ["photos"], "photos"),
        ("potos", ["photos"], "photos"),
        ("smpale", ["sample", "-"], "sample"),
        ("mnie", ["mine", "yours"], "mine"),
        ("tim", ["timm", "hf"], "timm"),
        ("finetnd-2026", ["finetuned-2026", "finetuned-2025"], "finetuned-2026"),
        ("cat.jepg", ["cat.jpeg", "dog.jpeg"], "cat.jpeg"),
        ("--no-compil", ["--compile", "--no-compile"], "--no-compile"),
        ("--masked", ["--num-masked", "--masking", "--mask"], "--num-masked"),
        ("photos", ["photos-2026", "notes"], "photos-2026"),
        ("ABC", ["abc"], "abc"),
        ("dale", ["dall-e", "pixels"], "dall-e"),
        ("my_photo", ["my-photos"], "my-photos"),
        ("imgs_0002.jpg", ["img_0001.jpg", "img_0002.jpg", "img_0003.jpg"], "img_0002.jpg"),
        ("photos-2027", ["photos-2026", "notes-2027"], "photos-2026"),
        ("abcdefgh", ["bacdefhg", "abdcefghij"], "bacdefhg"),
        ("abcdefghijklmn", ["xbcdefgyijklmz"], "xbcdefgyijklmz"),
    ],
)
def test_typing_errors_and_missing_parts_get_the_name(word: str, names: list[str], meant: str) -> None:
    assert nearest(word, names) == meant
    assert suggestion(word, names, prefix="in/") == f"Did you mean 'in/{meant}'?"


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("nosuchdir", ["mushroom", "outside", "touched"]),
        ("photos", ["motors", "phones", "phones-of-2026", "pots"]),
        ("images", ["mages.txt", "ages", "imports"]),
        ("train", ["trial", "brain-mri", "drain2"]),
        ("data", ["date-list", "beta", "dog"]),
        ("classifier", ["classes", "classic"]),
        ("runs/mine", ["runs", "mine"]),
        ("ab", ["a", "abc", "ac"]),
        ("photos", ["photos-2025", "photos-2026"]),  # either may be meant
        ("", ["a"]),
        ("photos-2027", ["photos-2025", "photos-2026"]),
        ("img_0007.jpg", ["img_0001.jpg", "notes", "img_0002.jpg", "img_0003.jpg"]),
        ("imgs_00.jpg", ["img_01.jpg", "img_02.jpg"]),
    ],
)
def test_names_that_nobody_mistyped_are_not_proposed(word: str, names: list[str]) -> None:
    assert nearest(word, names) is None
    assert suggestion(word, names) == ""


def lines_of(work: Callable[[], object]) -> int:
    """Returns how many lines of the module are executed."""
    number = 0

    def counted(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal number
        if frame.f_code.co_filename != module.__file__:
            return None
        number += event == "line"
        return counted

    before = sys.gettrace()
    sys.settrace(counted)
    try:
        work()
    finally:
        sys.settrace(before)
    return number


@pytest.mark.parametrize("word", ["img_0001x00.jpg", "img_99999999.jpg", "photos/of/2026", "0001000.jpg"])
def test_a_folder_of_numbered_files_costs_some_lines_a_name(word: str) -> None:
    """The whole table of edits of such names has 196 cells."""
    names = [f"img_{number:07d}.jpg" for number in range(2000)]
    assert lines_of(lambda: nearest(word, names)) < 200 * len(names)


def test_of_endless_names_some_are_looked_at() -> None:
    taken = count()

    def names() -> Iterator[str]:
        while True:
            yield f"img_{next(taken):07d}.jpg"

    assert nearest("nothing-like-it", names()) is None
    assert next(taken) < 100_000


def edits(one: str, other: str) -> int:
    """The optimal string alignment by its definition."""
    if not one or not other:
        return len(one) + len(other)
    found = [edits(one[1:], other) + 1, edits(one, other[1:]) + 1, edits(one[1:], other[1:]) + (one[0] != other[0])]
    if len(one) > 1 and len(other) > 1 and (one[0], one[1]) == (other[1], other[0]):
        found.append(edits(one[2:], other[2:]) + 1)
    return min(found)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_distance_is_that_of_the_definition(most: int) -> None:
    words = ["".join(letters) for length in range(5) for letters in product("ab", repeat=length)] + ["abcab", "cbaab"]
    for one in words:
        for other in words:
            within = edits(one, other)
            assert module._distance(one, other, most) == (within if within <= most else None), (one, other)
