"""The name that is proposed for a misspelt one: a typing error away, or the only one with all its parts."""

from __future__ import annotations

import pytest

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
    ],
)
def test_names_that_nobody_mistyped_are_not_proposed(word: str, names: list[str]) -> None:
    assert nearest(word, names) is None
    assert suggestion(word, names) == ""
